"""The order of a study's trials, and the plan that tells it beforehand."""

import json
import random
from collections import Counter

import pytest

from orchestrator.config.experiment import Experiment, Scheduler
from orchestrator.errors import RequestError
from orchestrator.study.agenda import Agenda, Done, Wait
from orchestrator.study.identity import Digests
from orchestrator.study.plan import make_plan, rungs
from orchestrator.study.trial import TrialPlan
from tests.unit.study_setup import DIGESTS, Record, carry_out, experiment, start_all

SPACE = (
    "search.space.pathway.auxiliary={choice: [none, audio, shape, shuffled]}",
    "search.space.pathway.scale.init={choice: [0.0, 0.01], when: {pathway.auxiliary: [audio, shape]}}",  # noqa: E501  one override
    "search.trials=5",
)


def agenda(*overrides: str) -> Agenda:
    return Agenda(experiment(*overrides), DIGESTS)


def stages(plans: list[TrialPlan]) -> list[str]:
    return [plan.stage for plan in plans]


def test_baselines_come_first_and_early() -> None:
    plans = start_all(agenda(*SPACE), Record())
    assert stages(plans) == ["baseline", "search"] * 3 + ["search"] * 2
    assert [plan.seed for plan in plans if plan.stage == "baseline"] == [0, 1, 2]
    assert {plan.seed for plan in plans if plan.stage == "search"} == {0}
    assert len({plan.trial for plan in plans}) == len(plans)
    assert [plan.label for plan in plans[:3:2]] == ["none (baseline)"] * 2


def test_a_whole_study_confirms_its_best_beside_a_control() -> None:
    record = Record()
    study = agenda(*SPACE)
    scores = {"audio": (0.5, 0.9), "shape": (0.5, 0.6), "shuffled": (0.5, 0.95)}
    plans = carry_out(study, record, scores)
    assert Counter(stages(plans)) == {"baseline": 3, "search": 5, "confirm": 2, "control": 3}
    tail = plans[8:]
    assert stages(tail) == ["confirm"] * 2 + ["control"] * 3
    assert [plan.seed for plan in tail] == [1, 2, 0, 1, 2]
    assert {plan.auxiliary for plan in tail} == {"audio", "random~audio"}
    assert all(plan.experiment.search.space == {} for plan in plans)
    assert isinstance(study.next(record), Done)


@pytest.mark.slow
def test_the_answer_is_pure_and_a_new_agenda_agrees() -> None:
    record = Record()
    study = agenda(*SPACE, "search.seeds=2", "search.sampler=tpe")
    rng = random.Random(0)
    active: list[str] = []
    for _ in range(100):
        plan = study.next(record, active)
        assert plan == study.next(record, active) == agenda(
            *SPACE, "search.seeds=2", "search.sampler=tpe"
        ).next(record, active)  # fmt: skip
        if isinstance(plan, Done):
            break
        if isinstance(plan, TrialPlan) and len(active) < 3:
            record.add(plan)
            active.append(plan.trial)
        else:
            trial = record.trials[active.pop(rng.randrange(len(active)))]
            trial.train(*(rng.random() for _ in range(rng.choice([1, 6]))), status="finished")
    assert isinstance(study.next(record), Done)


def test_interrupted_trials_come_first_and_unchanged() -> None:
    record = Record()
    study = agenda(*SPACE)
    plans = start_all(study, record)
    held = {plan.trial for plan in plans[:-2]}
    assert study.next(record, held) == plans[-2]
    assert study.next(record, held | {plans[-2].trial}) == plans[-1]
    assert study.next(record) == plans[0]
    record.trials[plans[0].trial].status = "planned"
    assert study.next(record) == plans[0]


def test_an_interrupted_control_is_rebuilt() -> None:
    record = Record()
    study = agenda(*SPACE)
    control = carry_out(study, record)[-1]
    record.trials[control.trial].status = "running"
    assert study.next(record) == control
    assert control.experiment.auxiliaries["random~audio"].like == "audio"


def test_an_interrupted_trial_whose_data_changed_is_refused() -> None:
    record = Record()
    plan = agenda(*SPACE).next(record)
    assert isinstance(plan, TrialPlan)
    record.add(plan)
    changed = Agenda(experiment(*SPACE), Digests("d2", None, DIGESTS.auxiliaries))
    with pytest.raises(RequestError, match="its data or its weights changed"):
        changed.next(record)


def test_confirmation_waits_for_the_search_but_not_for_baselines() -> None:
    record = Record()
    study = agenda(*SPACE)
    plans = start_all(study, record)
    active = [plan.trial for plan in plans]
    assert isinstance(study.next(record, active), Wait)
    for plan in plans:
        if plan.stage == "search":
            record.trials[plan.trial].train(0.5, 0.5)
    assert [trial.status for trial in record.trials.values()].count("running") == 3
    following = study.next(record, active)
    assert isinstance(following, TrialPlan)
    assert following.stage == "confirm"
    everything = start_all(study, record)
    assert stages(everything) == ["confirm"] * 2 + ["control"] * 3
    assert isinstance(study.next(record, tuple(record.trials)), Wait)


def test_failed_trials_do_not_block() -> None:
    record = Record()
    study = agenda(*SPACE)
    for plan in start_all(study, record):
        record.trials[plan.trial].status = "failed"
    assert isinstance(study.next(record), Done)


@pytest.mark.slow
def test_duplicates_are_drawn_anew_until_the_space_is_exhausted() -> None:
    small = (*SPACE[:2], "search.trials=40", "search.sampler=random")
    plans = start_all(agenda(*small), record := Record())
    searched = [plan for plan in plans if plan.stage == "search"]
    assert len(searched) == 5  # audio and shape at two scales each, and shuffled
    assert all(plan.auxiliary != "none" for plan in searched)
    for trial in record.trials.values():
        trial.train(0.5)
    for plan in start_all(agenda(*small), record):
        record.trials[plan.trial].train(0.5)
    done = agenda(*small).next(record)
    assert isinstance(done, Done)
    assert "no more than 5 configurations" in done.why


def test_a_listed_space_is_used_to_its_last_configuration() -> None:
    plans = start_all(
        agenda(
            "pathway.auxiliary=none",
            "search.space.model.depth={randint: [1, 6]}",
            "search.space.model.heads={choice: [1, 2, 4, 8]}",
            "search.trials=24",
            "search.seeds=1",
            "search.sampler=random",
        ),
        Record(),
    )
    assert stages(plans).count("search") == 23  # the file's own is the baseline


def test_values_that_exclude_each_other_are_drawn_anew() -> None:
    plans = start_all(
        agenda(
            "pathway.auxiliary=none",
            "model.width=48",
            "search.space.model.width={choice: [48, 64]}",
            "search.space.model.heads={choice: [3, 4]}",
            "search.trials=9",
        ),
        Record(),
    )
    shapes = {
        (p.experiment.model.width, p.experiment.model.heads) for p in plans if p.stage == "search"
    }
    assert shapes == {(48, 3), (64, 4)}  # (48, 4) is the baseline, (64, 3) does not divide


def test_grid_cells_share_the_trials_evenly_and_leave_the_baseline_out() -> None:
    plans = start_all(
        agenda(
            "search.space.pathway.auxiliary={grid: [none, audio, shape, [audio, shape]]}",
            "search.space.pathway.scale.init={uniform: [0.0, 1.0]}",
            "search.space.pathway.trainable={choice: [true, false]}",
            "search.trials=12",
        ),
        Record(),
    )
    shares = Counter(plan.auxiliary for plan in plans if plan.stage == "search")
    assert shares == {"audio": 4, "shape": 4, "audio+shape": 4}


def test_one_trial_is_a_study() -> None:
    alone = ("search.trials=1", "search.seeds=1")
    plans = carry_out(agenda(*alone), Record())
    assert [(p.stage, p.auxiliary, p.values) for p in plans] == [("search", "audio", {})]
    plans = carry_out(agenda(*alone, "pathway.auxiliary=none"), Record())
    assert [(p.stage, p.auxiliary) for p in plans] == [("baseline", "none")]


def test_one_arm_without_a_space_is_compared_on_all_seeds() -> None:
    plans = carry_out(agenda("search.trials=1"), Record())
    assert Counter(stages(plans)) == {"baseline": 3, "search": 1, "confirm": 2, "control": 3}
    plans = carry_out(agenda("pathway.auxiliary=none"), Record())
    assert Counter(stages(plans)) == {"baseline": 3}


def test_nothing_is_confirmed_when_not_asked_or_nothing_borrows() -> None:
    assert "confirm" not in stages(carry_out(agenda(*SPACE, "search.confirm=0"), Record()))
    lone = (
        "pathway.auxiliary=none",
        "search.space.training.epochs={choice: [1, 2, 3]}",
        "search.trials=3",
    )
    plans = carry_out(agenda(*lone), Record())
    assert Counter(stages(plans)) == {"baseline": 3, "search": 3}


def test_digests_may_follow_the_trials_configuration() -> None:
    space = (
        "search.space.data.source={choice: [digits, tones]}",
        "search.trials=2",
        "search.seeds=1",
    )

    def digests(own: Experiment) -> Digests:
        return Digests(own.data.source, None, DIGESTS.auxiliaries)

    plans = start_all(Agenda(experiment(*space), digests), Record())
    assert len({plan.arm for plan in plans if plan.stage == "search"}) == 2


def test_the_baseline_is_an_observation_of_the_search() -> None:
    study = agenda(*SPACE)
    assert study.covers_baseline
    assert not agenda("search.space.pathway.auxiliary={choice: [audio, shape]}").covers_baseline


@pytest.mark.parametrize(
    "overrides",
    [
        ["search.space={pathway.scale.init: {choice: [0.0, 0.1]}}"],
        ["pathway.auxiliary=null", "rival.kind=lora", "search.space={rival.rank: {choice: [3, 4]}}",
         "rival.rank=3"],
    ],
)  # fmt: skip
def test_a_space_whose_every_point_borrows_does_not_have_the_baseline(overrides: list[str]) -> None:
    study = experiment(*overrides, "search.seeds=1")
    assert not Agenda(study, DIGESTS).covers_baseline
    (planned,) = (line.trials for line in make_plan(study).stages if line.stage == "search")
    assert planned == stages(start_all(Agenda(study, DIGESTS), Record())).count("search") == 2


@pytest.mark.parametrize(
    ("kind", "grace", "factor", "epochs", "expected"),
    [
        ("asha", 1, 3, 6, (1, 3)),
        ("asha", 1, 3, 9, (1, 3)),
        ("asha", 2, 2, 16, (2, 4, 8)),
        ("asha", 4, 2, 4, ()),
        ("none", 1, 3, 6, ()),
    ],
)
def test_rungs(kind: str, grace: int, factor: int, epochs: int, expected: tuple[int, ...]) -> None:
    scheduler = Scheduler.model_validate(
        {"kind": kind, "grace_epochs": grace, "reduction_factor": factor}
    )
    assert rungs(scheduler, epochs) == expected


def test_the_plan_foretells_the_study() -> None:
    study = experiment(*SPACE)
    plan = make_plan(study, DIGESTS)
    done = carry_out(Agenda(study, DIGESTS), Record())
    assert {line.stage: line.trials for line in plan.stages} == Counter(stages(done))
    assert plan.trials == len(done)
    begun = start_all(Agenda(study, DIGESTS), Record())
    assert [line.trial for line in plan.arms] == [one.trial for one in begun]
    assert plan.configurations == 6
    assert plan.rungs == (1, 3)
    assert [line.name for line in plan.auxiliaries] == ["audio", "shape", "shuffled"]
    assert (plan.gangs.gangs, plan.gangs.cpus) == (2, 2.0)
    assert json.loads(json.dumps(plan.as_dict()))["format"] == 1


def test_the_plan_of_a_grid_shows_its_cells() -> None:
    plan = make_plan(
        experiment(
            "search.space.pathway.auxiliary={grid: [none, audio, shape]}",
            "search.space.training.learning_rate={loguniform: [1e-4, 1e-2]}",
            "search.trials=7",
        )
    )
    assert sorted(cell.trials for cell in plan.cells) == [2, 2, 3]
    assert plan.space[1].text == "0.0001 to 0.01"
    assert plan.configurations is None


def test_the_plan_warns_of_what_will_disappoint() -> None:
    plan = make_plan(experiment(*SPACE[:2], "search.trials=16", "search.seeds=2"))
    assert any("5 configurations beside the baseline" in line for line in plan.warnings)
    assert any("2 seed(s)" in line for line in plan.warnings)
    grid = make_plan(
        experiment("search.space.training.epochs={grid: [1, 2, 3]}", "search.trials=2")
    )
    assert any("some cells stay empty" in line for line in grid.warnings)
    lone = make_plan(experiment("pathway.auxiliary=none"))
    assert any("no trial borrows weights" in line for line in lone.warnings)
    one = make_plan(experiment("search.trials=1", "search.seeds=1"))
    assert (one.trials, one.warnings) == (1, ())

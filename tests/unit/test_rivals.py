"""Rivals in a study: what is refused, which arms they make, and what the report says of them."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from m2pt.data.config import DataInfo
from m2pt.pathway.config import Coverage
from m2pt.rivals.config import COMPOSED, KINDS, Rival, RivalKind
from m2pt.training.recipe import TrainingConfig
from orchestrator.conduct.preflight import _check_rivals
from orchestrator.conduct.supply import check_depth
from orchestrator.config.experiment import Experiment
from orchestrator.errors import RequestError
from orchestrator.evidence import report
from orchestrator.evidence.findings import findings
from orchestrator.evidence.report import Origin, render
from orchestrator.evidence.rivals import rivals_as_json, rivals_table
from orchestrator.study.agenda import Agenda
from orchestrator.study.arms import possible_auxiliaries
from orchestrator.study.cost import ModelNumbers, arm_cost
from orchestrator.study.identity import arm_identity
from orchestrator.study.plan import make_plan
from orchestrator.study.selection import leaderboard
from orchestrator.study.settlement import to_export, to_settle
from orchestrator.study.trial import TrialPlan
from orchestrator.tracking.record import fold
from tests.unit import evidence_setup as made_up
from tests.unit.study_setup import DIGESTS, Record, experiment, start_all

EVERY = f"search.rivals=[{', '.join(KINDS)}]"
OFF = "pathway.auxiliary=null"


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["rival.kind=clam"], "rival.kind: must be 'calm', 'gats', 'average'"),
        (["rival.kind=calm", "rival.auxiliary=audio"], "pathway.auxiliary is audio; set one of"),
        ([OFF, "rival.kind=calm"], "rival.auxiliary: must name an auxiliary for calm"),
        ([OFF, "rival={kind: gats, auxiliary: nose}"], "rival.auxiliary: 'nose' is not declared"),
        (["rival.auxiliary=[audio, audio]"], "without repeats"),
        (["search.rivals=[calm]", "rival.every=5"], "rival.every: for calm of search.rivals: 5"),
        (["search.rivals=[gats]", "rival.width=6"], "4 heads do not divide the 6 channels"),
        (["search.rivals=[calm]", "rival.heads=5"], "rival.heads: for calm of search.rivals: 5"),
        (["search.rivals=[lora]", "rival.rank=65"], "65 is more than the 64"),
        (["rival.rank=0"], "rival.rank: a whole number of 1 or more, or matched, not 0"),
        (["rival.rank=full"], "rival.rank: "),
        (["rival.share=0"], "with 0 nothing is averaged"),
        ([OFF, "rival={kind: lora, coverage: {linears: [q, v]}}"], "q, v are parts of one"),
        ([OFF, "rival={kind: lora, coverage: {blocks: 'last:9'}}"], "rival.coverage: blocks"),
        ([OFF, "rival={kind: average, auxiliary: audio, mapping: [0]}"], "rival.mapping: a list"),
        (["rival.mapping=backwards"], "rival.mapping: must be 'identity', 'reversed'"),
        (
            ["search.rivals=[lora]", "rival.rank=60", "model.mlp_ratio=0.5"],
            "60 is more than the 32",
        ),
        (
            ["search.rivals=[lora]", "resources={workers: 2, sharding: fsdp2}"],
            "search.rivals: lora needs whole modules",
        ),
        (["search.rivals=[gats]", "data.source=shape-parts"], "the parts of points"),
        (["search.rivals=[gats, gats]"], "search.rivals: has one twice"),
        (["search.space={rival.every: {choice: [1, 2]}}"], "rival.kind is null and is not"),
        (["search.space={rival: {choice: [{kind: calm}]}}"], "search its keys one by one"),
        (
            [OFF, "search.space={rival.kind: {choice: [lora]}, model.depth: {choice: [2, 4]}}"],
            "cannot be searched together with auxiliaries",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], rule: str) -> None:
    if "shape-parts" in str(overrides):
        overrides = [*overrides, "search.metric=val/miou"]
    with pytest.raises(RequestError) as refused:
        experiment(*overrides)
    assert rule in str(refused.value)


def test_what_has_no_effect_is_no_rival() -> None:
    """Without a kind the section says what rivals of `search.rivals` are like, and nothing else."""
    plain, other = experiment(), experiment("rival={every: 99, rank: 7, auxiliary: audio}")
    assert other.training_config() == plain.training_config()
    assert arm_identity(other, DIGESTS) == arm_identity(plain, DIGESTS)
    assert "rival" not in arm_identity(plain, DIGESTS)
    assert experiment(EVERY).training_config().rival is None


def test_a_rival_is_told_apart_by_what_its_kind_reads() -> None:
    def identity(text: str) -> dict[str, Any]:
        return arm_identity(experiment(OFF, f"rival={{{text}}}"), DIGESTS)

    calm = identity("kind: calm, auxiliary: audio")
    assert calm["auxiliaries"] == ["a1"]
    assert calm["pathway"] is None
    assert calm == identity("kind: calm, auxiliary: audio, rank: 3, share: 0.1, width: 8")
    assert calm != identity("kind: calm, auxiliary: audio, every: 2")
    assert calm != identity("kind: calm, auxiliary: shape")
    lora = identity("kind: lora, auxiliary: audio")
    assert lora["auxiliaries"] == []
    assert lora == identity("kind: lora, rank: 48, every: 2")


def test_a_matched_rank_is_that_of_the_section_pathway() -> None:
    def rank(*overrides: str) -> object:
        rival = experiment(OFF, "rival.kind=lora", *overrides).training_config().rival
        assert rival is not None
        return rival.rank

    assert rank() == 48
    assert rank("pathway.trainable='rank:4'") == 4
    assert rank("pathway.trainable=false") == 1
    assert rank("rival.coverage.linears=[proj]") == 64


def test_a_training_has_a_pathway_or_a_rival() -> None:
    config = experiment().training_config()
    with pytest.raises(ValueError, match="in the place of a pathway"):
        replace(config, rival=Rival("lora", rank=2))
    assert TrainingConfig(config.model, config.data).rival is None


def confirmed(*more: str) -> tuple[Experiment, Record]:
    """A study whose one search arm was confirmed beside its rivals, all of them trained."""
    study = experiment(
        "search.trials=1",
        "search.seeds=2",
        "search.scheduler={kind: none}",
        "search.controls=[]",
        "search.space={training.weight_decay: {choice: [0.1]}}",
        EVERY,
        *more,
    )
    agenda, record = Agenda(study, DIGESTS), Record()
    for _ in range(4):
        for plan in start_all(agenda, record):
            record.trials[plan.trial].train(*[0.5] * 6)
    return study, record


@cache
def usual() -> tuple[Experiment, Record]:
    return confirmed()


def settings(record: Record) -> dict[str, dict[str, Any]]:
    """What distinguishes the arm of each rival, by kind."""
    trials = [trial for trial in record.trials.values() if trial.stage == "rival"]
    by_kind: dict[str, list[Any]] = {}
    for trial in trials:
        by_kind.setdefault(trial.values["rival.kind"], []).append(trial)
    assert all([one.seed for one in found] == [0, 1] for found in by_kind.values())
    return {kind: dict(found[0].values) for kind, found in by_kind.items()}


def test_each_confirmed_arm_has_its_rivals_on_its_seeds() -> None:
    study, record = usual()
    arm = {"training.weight_decay": 0.1, "pathway.auxiliary": None}
    assert settings(record) == {
        "calm": {**arm, "rival.kind": "calm", "rival.auxiliary": "audio"},
        "gats": {**arm, "rival.kind": "gats", "rival.auxiliary": "audio"},
        "average": {**arm, "rival.kind": "average", "rival.auxiliary": "audio"},
        "lora": {**arm, "rival.kind": "lora", "rival.rank": 48},
    }
    rows = {row.control_kind: row for row in leaderboard(record, study) if row.control_of}
    assert sorted(map(str, rows)) == sorted(KINDS)
    assert {row.kind for row in rows.values()} == {"rival"}
    assert {kind: row.label for kind, row in rows.items()} == {
        "calm": "calm with audio · every 4 blocks · weight_decay 0.1",
        "gats": "gats with audio · every 4 blocks · weight_decay 0.1",
        "average": "average with audio · share 0.5 · weight_decay 0.1",
        "lora": "lora · rank 48 · weight_decay 0.1",
    }
    auxiliaries = {row.control_kind: row.auxiliary for row in rows.values()}
    assert auxiliaries == {"calm": "audio", "gats": "audio", "average": "audio", "lora": "none"}


def test_an_interrupted_rival_goes_on_as_it_was() -> None:
    study, record = usual()
    trial = next(one for one in record.trials.values() if one.values.get("rival.kind") == "lora")
    others = {name: one for name, one in record.trials.items() if one is not trial}
    interrupted = Record({**others, trial.trial: replace(trial, status="running")})
    plan = Agenda(study, DIGESTS).next(interrupted)
    assert isinstance(plan, TrialPlan)
    assert (plan.trial, plan.stage, plan.label) == (trial.trial, "rival", trial.label)


def test_rivals_take_coverage_and_mapping_from_their_arm() -> None:
    _, record = confirmed(
        "pathway.coverage={blocks: [1, 3], linears: [q, v, fc2]}",
        "pathway.mapping=2",
        "pathway.auxiliary=[audio, shape]",
        "rival.rank=5",
    )
    found = settings(record)
    assert found["average"]["rival.coverage"] == {"blocks": [1, 3], "linears": ["q", "v", "fc2"]}
    assert found["average"]["rival.mapping"] == 2
    assert found["average"]["rival.auxiliary"] == ["audio", "shape"]
    assert found["lora"]["rival.coverage"] == {"blocks": [1, 3], "linears": ["qkv", "fc2"]}
    assert found["lora"]["rival.rank"] == 5
    assert "rival.coverage" not in found["calm"]
    assert found["gats"]["rival.auxiliary"] == ["audio", "shape"]


def test_rivals_are_measured_beside_the_arm_and_never_exported_where_they_cannot_be() -> None:
    study, record = usual()
    settled = to_settle(record, study, Agenda(study, DIGESTS))
    stages = [one.plan.stage for one in settled]
    assert {stage: stages.count(stage) for stage in set(stages)} == {
        "baseline": 2, "search": 1, "confirm": 1, "rival": 8,
    }  # fmt: skip
    assert all(one.costed for one in settled)
    (exported,) = (one.plan for one in settled if one.export)
    assert exported.experiment.pathway.names == ("audio",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rival_alone_is_read_on_test_and_exported_where_it_can_be(kind: RivalKind) -> None:
    alone = experiment(
        OFF, "search={trials: 1, seeds: 1}", f"rival={{kind: {kind}, auxiliary: audio}}"
    )
    agenda, record = Agenda(alone, DIGESTS), Record()
    (plan,) = start_all(agenda, record)
    assert plan.stage == "search"
    record.trials[plan.trial].train(*[0.5] * 6)
    (settlement,) = to_settle(record, alone, agenda)
    assert settlement.export == (kind not in COMPOSED)
    vars(record.trials[plan.trial])["exported"] = None
    found = to_export(record, alone)  # type: ignore[arg-type]  # `exported` is set by hand
    assert found == (None if kind in COMPOSED else plan.trial)


def test_a_searched_rival_is_an_arm_and_the_baseline_stays_plain() -> None:
    study = experiment(
        OFF,
        "rival.auxiliary=shape",
        "search={trials: 9, seeds: 1, space: {rival.kind: {choice: [null, calm, average, lora]}, "
        "rival.every: {choice: [1, 2], when: {rival.kind: calm}}}}",
    )
    assert possible_auxiliaries(study) == ("shape",)
    plans = start_all(Agenda(study, DIGESTS), Record())
    assert [plan.label for plan in plans if plan.stage == "baseline"] == ["none (baseline)"]
    assert {plan.label for plan in plans if plan.stage == "search"} == {
        "calm with shape · every block",
        "calm with shape · every 2 blocks",
        "average with shape · share 0.5",
        "lora · rank 48",
    }


def test_an_auxiliary_has_a_block_for_each_connection() -> None:
    study = experiment(OFF, "rival={kind: gats, auxiliary: audio, every: 1}")
    check_depth(study, 4)
    with pytest.raises(ValueError, match="makes 4 connections of gats, and the auxiliary has 3"):
        check_depth(study, 3)
    check_depth(experiment(OFF, "rival={kind: lora}"), 3)
    with pytest.raises(ValueError, match="mapping: the auxiliary has 3 blocks"):
        check_depth(experiment(OFF, "rival={kind: average, auxiliary: audio}"), 3)


def test_a_table_that_tells_parts_is_found_out_before_anything_starts() -> None:
    study = experiment("search.rivals=[average, gats]")
    info = DataInfo("point", (64, 3), 2, ("a", "b"), "d", "parts")
    with pytest.raises(RequestError, match=r"rival.kind: gats joins what goes from block to block"):
        _check_rivals(study, info, "")
    _check_rivals(experiment("search.rivals=[average, lora]"), info, "")


def test_the_plan_counts_rivals_and_their_memory() -> None:
    study, _ = usual()
    assert {line.stage: line.trials for line in make_plan(study).stages} == {
        "baseline": 2, "search": 1, "confirm": 1, "rival": 8,
    }  # fmt: skip
    (warning,) = (text for text in make_plan(experiment(OFF, EVERY)).warnings if "rivals" in text)
    assert "there will be none" in warning
    numbers = ModelNumbers(parameters=1000, buffers=0, tokens=16)
    lora = arm_cost(experiment(OFF, "rival={kind: lora, rank: 2}"), numbers)
    assert (lora.trained, lora.auxiliary) == (1000 + 2 * 4 * 16 * 64, 0)
    calm = arm_cost(experiment(OFF, "rival={kind: calm, auxiliary: audio}"), numbers)
    assert calm.auxiliary == 4 * (12 * 64 * 64 + 9 * 64)
    assert calm.trained > 1000
    assert not calm.auxiliary_trained


RIVALS = {"lora": (0.9333, 0.9361, 0.9333), "calm": (0.9472, 0.9500, 0.9470)}
COSTS = {"none": 0.99, "audio": 1.004, "lora": 1.01, "calm": 2.13}


def with_rivals() -> list[dict[str, Any]]:
    """The events of the made-up study, with two rivals on three seeds each, and costs."""
    planned = {
        name: [made_up.Planned("rival", "audio", seed, init=number) for seed in range(3)]
        for number, name in enumerate(RIVALS, start=1)
    }
    events = [
        *made_up.opening(),
        *made_up.events_of(made_up.search_stage()),
        *made_up.events_of(made_up.rest()),
        *(event for trials in planned.values() for event in made_up.events_of(trials)),
        *made_up.read_on_test(),
    ]
    kinds = {trial.trial: name for name, trials in planned.items() for trial in trials}
    for event in [event for event in events if event["kind"] == "planned"]:
        if event["trial"] in kinds:
            event["label"] = kinds[event["trial"]]
            event["values"] = {"pathway.auxiliary": None, "rival.kind": kinds[event["trial"]]}
    for name, trials in planned.items():
        for trial, value in zip(trials, RIVALS[name], strict=True):
            metrics = {"test/accuracy": value}
            events.append({"kind": "tested", "trial": trial.trial, "metrics": metrics, "time": 0.0})
    auxiliary = {e["trial"]: e["auxiliary"] for e in events if e["kind"] == "planned"}
    for event in [event for event in events if event["kind"] == "tested"]:
        cost = COSTS.get(kinds.get(event["trial"], auxiliary[event["trial"]]))
        if cost is not None:
            event["metrics"] |= {
                "cost/inference_ratio": cost,
                "cost/trained_parameters": 12_345.0,
                "cost/inference_parameters": 500.0 if cost > 2 else 0.0,
            }
    return events


def test_a_study_without_rivals_has_no_table_of_them() -> None:
    found = findings(made_up.finished_study(), made_up.experiment())
    assert rivals_table(found) is None
    assert rivals_as_json(found) == []


def test_the_report_sets_the_pathway_beside_its_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_plots", lambda found: {})
    study = made_up.experiment()
    files = render(fold(with_rivals()), study, Origin(versions={}))
    data = json.loads(files["report.json"])
    lines = {line["label"]: line for line in data["rivals"]}
    assert [line["side"] for line in data["rivals"]] == ["baseline", "pathway", "rival", "rival"]
    assert lines["lora"]["metric"] == "test/accuracy"
    assert lines["lora"]["to_pathway"]["mean"] == pytest.approx(-0.00836, abs=1e-4)
    assert lines["calm"]["to_baseline"]["mean"] == pytest.approx(0.0231, abs=1e-4)
    assert lines["calm"]["cost"] == [2.13, 2.13, 2.13]
    assert (lines["calm"]["trained"], lines["calm"]["in_use"]) == (12_345, 500)
    assert {row["label"]: row["kind"] for row in data["leaderboard"]}["calm"] == "rival"
    html = files["report.html"].decode()
    section = html[html.index("<h2>Rivals</h2>") : html.index("<h2>Leaderboard</h2>")]
    for said in ("2.13", "1.00", "0.99", "12,345", "better than 1 rival (lora)", "worse than 1"):
        assert said in section, said


def test_on_validation_nothing_is_claimed_and_only_whole_trainings_are_compared() -> None:
    events = [event for event in with_rivals() if event["kind"] != "tested"]
    calm = {e["trial"] for e in events if e["kind"] == "planned" and e["label"] == "calm"}
    cut = [
        event
        for event in events
        if not (event["kind"] == "epoch" and event["trial"] in calm and event["epoch"] > 3)
    ]
    study = made_up.experiment()
    whole, partial = (findings(fold(found), study) for found in (events, cut))
    assert {row["label"] for row in rivals_as_json(whole)} > {"calm", "lora"}
    assert "calm" not in {row["label"] for row in rivals_as_json(partial)}
    table = rivals_table(whole)
    assert table is not None
    said = table["notes"][0]
    assert said.startswith("On validation the best pathway is ")
    assert said.endswith("nothing is claimed before the test split is read.")


def test_coverage_of_a_rival_has_the_forms_of_a_pathways() -> None:
    rival = Rival("average", coverage=Coverage(blocks="first:2"), mapping=(1, 0))
    assert rival.plainest() == rival
    assert Rival("calm", rank=3).plainest() == Rival("calm")
    assert Rival(rank=3).plainest() == Rival()

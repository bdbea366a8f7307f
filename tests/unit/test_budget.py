"""What a study has spent, and what is decided from it."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.train import one_trial
from orchestrator.conduct import brake
from orchestrator.conduct.ownership import check_owner, resumed_experiment
from orchestrator.config.experiment import Budget
from orchestrator.config.io import as_text
from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.study.agenda import Agenda, Capped, Done, Wait
from orchestrator.study.budget import Meter, Reached, Spent, reached, spent_in
from orchestrator.study.trial import TrialPlan
from tests.unit.study_setup import DIGESTS, Record, experiment, start_all

SPACE = ("search.space.pathway.scale.init={uniform: [0.0, 1.0]}", "search.trials=5")
HOUR = 3600.0


def at(hours: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "time": 1e9 + hours * HOUR, **fields}


def started(hours: float, workers: int = 1) -> dict[str, Any]:
    return at(hours, "study_started", experiment={"resources": {"workers": workers}})


def epoch(hours: float, trial: str = "a", **seconds: float) -> dict[str, Any]:
    return at(hours, "epoch", trial=trial, epoch=1, seconds=seconds)


def test_wall_clock_is_that_of_owners_at_work_not_of_the_nights_between() -> None:
    events = [at(0, "takeover"), started(0), at(2, "study_stopped", why="asked to stop")]
    assert spent_in(events).wall_clock_hours == pytest.approx(2)
    later = [*events, at(10, "takeover"), started(10), at(11, "planned", trial="a")]
    assert spent_in(later).wall_clock_hours == pytest.approx(3)
    assert spent_in(later, now=1e9 + 11.5 * HOUR).wall_clock_hours == pytest.approx(3.5)
    assert spent_in([], now=5.0) == Spent()


def test_what_a_dead_owner_left_on_its_disk_counts_for_that_owner() -> None:
    events = [
        at(0, "takeover"),
        started(0),
        at(10, "takeover"),
        epoch(1.5),
        at(10, "planned", trial="b"),
    ]
    assert spent_in(events).wall_clock_hours == pytest.approx(1.5)
    twice = [*events, at(20, "takeover"), epoch(10.5), at(21, "planned", trial="c")]
    assert spent_in(twice).wall_clock_hours == pytest.approx(1.5 + 0.5 + 1)


def test_training_hours_are_those_of_all_workers() -> None:
    events = [
        at(0, "takeover"),
        started(0, workers=4),
        at(0, "auxiliary_ready", name="audio", seconds=HOUR / 2),
        at(0, "auxiliary_ready", name="video", seconds=HOUR, reused=True),  # another study's
        epoch(1, train=HOUR, evaluate=HOUR / 4, checkpoint=HOUR / 4),
        at(1, "takeover"),
        started(1, workers=1),
        at(1, "auxiliary_ready", name="audio", seconds=HOUR / 2, reused=True),
        epoch(2, train=HOUR),
        epoch(2),
    ]
    assert spent_in(events).training_hours == pytest.approx(4 * 0.5 + 4 * 1.5 + 1)


def test_a_trial_counts_once_however_often_it_is_taken_up() -> None:
    events = [at(0, "planned", trial=name) for name in ("a", "b")]
    again = [at(1, "started", trial="a", gang="gang-0", attempt=2), at(2, "planned", trial="b")]
    assert spent_in(events + again).trials == 2


def test_a_trial_was_held_back_until_one_is_planned_again() -> None:
    meter = Meter()
    figures = Reached("trials", 2, 2).as_dict()
    for event in (at(0, "planned", trial="a"), at(1, "study_stopped", why="w", budget=figures)):
        meter.observe(event)
    assert meter.spent().held_back
    meter.observe(at(2, "planned", trial="b"))
    assert not meter.spent().held_back
    meter.observe(at(3, "study_stopped", why="asked to stop"))
    assert not meter.spent().held_back


@pytest.mark.parametrize(
    ("spent", "budget", "cap"),
    [
        (Spent(9, 9, 9), {}, None),
        (Spent(1.9), {"wall_clock_hours": 2}, None),
        (Spent(2.0), {"wall_clock_hours": 2}, "wall_clock_hours"),
        (Spent(0, 0, 5), {"training_hours": 4.5}, "training_hours"),
        (Spent(2, 0, 5), {"wall_clock_hours": 2, "training_hours": 4.5}, "wall_clock_hours"),
        (Spent(0, 4), {"trials": 4}, None),  # they may still run, and may be all there are
        (Spent(0, 4, 0, held_back=True), {"trials": 4}, "trials"),
        (Spent(0, 4, 0, held_back=True), {"trials": 5}, None),  # it was raised
        (Spent(0, 4, 0, held_back=True), {}, None),
    ],
)
def test_a_cap_is_reached(spent: Spent, budget: Mapping[str, Any], cap: str | None) -> None:
    found = reached(spent, Budget(**budget))
    assert (found and found.cap) == cap


def test_a_reached_cap_says_figures_and_what_would_do() -> None:
    hours = Reached("wall_clock_hours", 0.5123, 0.5)
    assert hours.why == "budget.wall_clock_hours is spent: 0.512 of 0.5 hours of wall clock"
    assert hours.larger == "budget.wall_clock_hours=1.02"
    trials = Reached("trials", 4, 4)
    assert (trials.why, trials.larger) == (
        "budget.trials is spent: 4 of 4 trials",
        "budget.trials=8",
    )
    assert experiment(hours.larger, trials.larger).budget == Budget(wall_clock_hours=1.02, trials=8)


@pytest.mark.parametrize("cap", range(1, 9))
def test_the_cap_on_trials_keeps_places_for_baselines(cap: int) -> None:
    """Three seeds, five search trials: what a cap leaves out is the end of the search."""
    agenda, record = Agenda(experiment(*SPACE, f"budget.trials={cap}"), DIGESTS), Record()
    plans = start_all(agenda, record)
    assert len(plans) == cap
    assert Counter(plan.stage for plan in plans)["baseline"] == min(3, cap)
    free = start_all(Agenda(experiment(*SPACE), DIGESTS), Record())
    searched = [plan.trial for plan in plans if plan.stage == "search"]
    assert searched == [plan.trial for plan in free if plan.stage == "search"][: len(searched)]


def test_a_cap_holds_back_only_what_would_come_next() -> None:
    overrides = (*SPACE, "search.confirm=0")
    agenda, record = Agenda(experiment(*overrides, "budget.trials=8"), DIGESTS), Record()
    assert len(start_all(agenda, record)) == 8
    assert isinstance(agenda.next(record, tuple(record.trials)), Wait)
    for trial in record.trials.values():
        trial.train(0.5)
    assert isinstance(agenda.next(record), Done)  # 8 of 8 are all there are
    capped = Agenda(experiment(*SPACE, "budget.trials=8"), DIGESTS)
    assert isinstance(capped.next(record), Capped)  # confirmation would come
    raised = Agenda(experiment(*SPACE, "budget.trials=9"), DIGESTS).next(record)
    assert isinstance(raised, TrialPlan)
    assert raised.stage == "confirm"


def test_interrupted_trials_are_taken_up_under_a_cap_that_is_reached() -> None:
    agenda, record = Agenda(experiment(*SPACE, "budget.trials=2"), DIGESTS), Record()
    plans = start_all(agenda, record)
    assert isinstance(agenda.next(record, tuple(record.trials)), Capped)
    assert agenda.next(record) == plans[0]


PLACED = ("budget.trials=9", "resources.workers=4", "checkpoints.every_epochs=2")


def test_a_study_may_be_run_again_with_another_budget_and_elsewhere(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    first = experiment("budget.trials=3")
    store.put(layout.experiment(first.name), as_text(first).encode())
    check_owner(store, experiment(*PLACED))
    resumed = resumed_experiment(store, first.name, PLACED)
    assert resumed == experiment(*PLACED)
    with pytest.raises(RequestError, match="belongs to another experiment"):
        check_owner(store, experiment(*PLACED, "training.epochs=3"))
    with pytest.raises(RequestError, match=r"--set: .* \(training.epochs: 6 there, 3 here\)"):
        resumed_experiment(store, first.name, [*PLACED, "training.epochs=3"])
    with pytest.raises(RequestError, match=r"budget.trials"):
        resumed_experiment(store, first.name, ["budget.trials=0"])


def test_the_brake_is_pulled_when_a_cap_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brake, "POLL_SECONDS", 0.01)
    store, told = Store.open(str(tmp_path)), list[str]()
    found: list[Reached | None] = [None]
    with Lease.acquire(store, "s") as lease, brake.Brake(store, "s", lease, tell=told.append) as it:
        it.limit(lambda: found[0])
        time.sleep(0.1)
        assert not it()
        cap = found[0] = Reached("wall_clock_hours", 2.0, 2.0)
        deadline = time.monotonic() + 60
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (it.reached, it.why) == (cap, cap.why)
        it.spend(Reached("trials", 1, 1))  # the first reason stays
        assert it.reached == cap
    assert told == [f"stopping ({cap.why}); what is checkpointed stays"]


def test_a_study_of_one_trial_opens_one_gang() -> None:
    assert one_trial(experiment()).resources.concurrent_trials == 1

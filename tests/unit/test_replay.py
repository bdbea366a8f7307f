"""Searcher and scheduler are rebuilt from the journal: they stand where the live ones stood."""

import random
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest

from orchestrator.config.experiment import Experiment
from orchestrator.study.agenda import Agenda
from orchestrator.study.sampler import Sampler
from orchestrator.tracking.events import Event
from orchestrator.tracking.record import fold
from tests.unit.simulated_setup import Journal, Simulated
from tests.unit.study_setup import DIGESTS, experiment

pytestmark = pytest.mark.slow

MIXED = (
    "search.space.pathway.auxiliary={choice: [none, audio, shape]}",
    "search.space.pathway.scale.init={uniform: [0.0, 1.0], when: {pathway.auxiliary: [audio, shape]}}",  # noqa: E501  one override
    "search.space.training.learning_rate={loguniform: [1e-4, 1e-2]}",
)
GRID = (
    "search.space.pathway.auxiliary={grid: [audio, shape]}",
    "search.space.pathway.trainable={grid: [true, false]}",
)
PLAIN = "search.scheduler={kind: none}"
HALVING = "search.scheduler={kind: asha, grace_epochs: 1, reduction_factor: 2}"
CASES = {
    "random": (*MIXED, PLAIN, "search.sampler=random", "search.trials=4", "training.epochs=2"),
    "grid": (*GRID, PLAIN, "search.sampler=random", "search.trials=4", "training.epochs=2"),
    "tpe": (*MIXED, PLAIN, "search.sampler=tpe", "search.trials=10", "training.epochs=1"),
    "asha": (*MIXED, HALVING, "search.sampler=random", "search.trials=6", "training.epochs=4"),
    "tpe and asha": (
        *MIXED,
        HALVING,
        "search.sampler=tpe",
        "search.trials=10",
        "training.epochs=4",
    ),
}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the mailbox is answered at once."""
    monkeypatch.setattr("orchestrator.ray_backend.tune.ray.get", lambda asked: asked)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The Optuna studies that samplers have made for their answers, in order."""
    made: list[Any] = []
    make = Sampler._study

    def making(self: Sampler, number: int) -> Any:
        made.append(make(self, number))
        return made[-1]

    monkeypatch.setattr(Sampler, "_study", making)
    return made


def study_of(case: str, *more: str) -> Experiment:
    return experiment(*CASES[case], "search.seeds=1", "search.confirm=1", *more)


def plans(events: list[Event]) -> list[tuple[str, Any]]:
    """Trials and their values, in the order in which they were planned."""
    return [(e["trial"], e["values"]) for e in events if e["kind"] == "planned"]


def figures(events: list[Event]) -> dict[str, Any]:
    """How each trial ended, and all that it reported."""
    trials = fold(events).trials.items()
    return {
        name: (trial.status, trial.why, [(one.epoch, one.metrics) for one in trial.epochs])
        for name, trial in trials
    }


def rungs(driver: Simulated) -> Any:
    """All that the scheduler's decisions follow from."""
    asha = driver.scheduler._asha
    filled = [] if asha is None else [dict(bracket._rungs) for bracket in asha._brackets]
    return deepcopy((filled, driver.scheduler._decided))


def generators(made: list[Any]) -> list[Any]:
    """Of each sampler: where its generators of random numbers stand, and what it has seen."""
    found = []
    for study in made:
        own = [study.sampler, getattr(study.sampler, "_random_sampler", None)]
        states = [one._rng.rng.get_state() for one in own if one is not None]
        seen = [(trial.state, trial.params, trial.value) for trial in study.trials]
        found.append(([(state[1].tolist(), state[2:]) for state in states], seen))
    return found


@dataclass(frozen=True)
class Stand:
    """Where a live driver stands once so many events are in its journal."""

    events: int
    active: frozenset[str]
    rungs: Any
    next: Any
    generators: Any


def stand(driver: Simulated, active: frozenset[str], asked: list[Any]) -> Stand:
    """Where a driver stands; its agenda is asked as if nobody had asked it before."""
    driver.agenda._asked = None
    before = len(asked)
    following = driver.agenda.next(driver.journal.record, active)
    drawn = generators(asked[before:])
    return Stand(len(driver.journal.events), active, rungs(driver), following, drawn)


@pytest.mark.parametrize("case", CASES)
def test_at_every_event_a_rebuilt_driver_stands_where_the_live_one_stood(
    case: str, asked: list[Any]
) -> None:
    study = study_of(case)
    live = Simulated(study, Journal(), random.Random(case))
    stands: list[Stand] = []
    live.journal.on_append = lambda: stands.append(stand(live, live.active, asked))
    live.to_its_end()
    events = live.journal.events
    assert len(stands) == len(events)
    assert any(event["kind"] == "stopped" for event in events) == ("asha" in case)
    for then in stands:
        found = Journal.of(events[: then.events])
        rebuilt = Simulated(study, found, random.Random())
        owed = found.events[then.events :]
        if owed:  # a stop that was decided upon, and that the live driver wrote down next
            assert without_time(owed) == without_time(events[then.events :][: len(owed)])
            rebuilt.agenda = Agenda(study, DIGESTS)
            found.record = fold(events[: then.events])
        now = replace(stand(rebuilt, then.active, asked), events=then.events)
        assert now == then
        if then.events % 5 == 0:
            check_reports_are_decided_upon_once(rebuilt)


def check_reports_are_decided_upon_once(driver: Simulated) -> None:
    """A trial's process that was started anew reads all its reports again."""
    before, events = rungs(driver), list(driver.journal.events)
    for name, trial in driver.journal.record.trials.items():
        for one in trial.epochs:
            assert driver.report(name, one.epoch) == "CONTINUE"
    assert rungs(driver) == before
    assert driver.journal.events == events


def without_time(events: list[Event]) -> list[Event]:
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


@pytest.mark.parametrize("case", ["random", "grid"])
def test_after_a_fault_at_any_event_the_trials_and_their_values_are_the_same(case: str) -> None:
    study = study_of(case, "training.epochs=1")
    whole = Simulated(study, Journal(), random.Random(case))
    whole.to_its_end()
    events = whole.journal.events
    assert len(plans(events)) > 5
    for fault in range(len(events)):
        resumed = Simulated(study, Journal.of(events[:fault]), random.Random(fault))
        resumed.to_its_end()
        assert plans(resumed.journal.events) == plans(events)
        assert figures(resumed.journal.events) == figures(events)


def test_after_a_fault_only_later_decisions_may_differ() -> None:
    study = study_of("tpe and asha")
    whole = Simulated(study, Journal(), random.Random(0))
    whole.to_its_end()
    events = whole.journal.events
    for fault in range(7, len(events), 17):
        before = events[:fault]
        searched = sum(event.get("stage") == "search" for event in before)
        numbers = record_numbers(study, before, fault)
        assert all(number >= searched for number in numbers)


def record_numbers(study: Experiment, before: list[Event], fault: int) -> list[int]:
    """Go on after a fault; which places of the search were asked for."""
    resumed = Simulated(study, Journal.of(before), random.Random(fault))
    numbers: list[int] = []
    sampler = resumed.agenda.sampler
    ask = sampler.ask

    def asking(number: int, history: Any = ()) -> Any:
        numbers.append(number % study.search.trials)  # without grid, the step to another try
        return ask(number, history)

    sampler.ask = asking  # type: ignore[method-assign]  # to listen
    resumed.to_its_end()
    after = resumed.journal.events
    assert after[: len(before)] == before
    assert plans(after)[: len(plans(before))] == plans(before)
    ended = [e["trial"] for e in after if e["kind"] in ("finished", "stopped")]
    assert len(ended) == len(set(ended)) == len(plans(after))
    return numbers


def test_one_trial_at_a_time_goes_on_as_if_there_had_been_no_fault() -> None:
    """Then nothing depends on which of several trials is quicker."""
    study = study_of("tpe and asha")
    whole = Simulated(study, Journal(), random.Random(0), slots=1)
    whole.to_its_end()
    events = whole.journal.events
    for fault in range(13, len(events), 17):
        resumed = Simulated(study, Journal.of(events[:fault]), random.Random(fault), slots=1)
        resumed.to_its_end()
        assert plans(resumed.journal.events) == plans(events)
        assert figures(resumed.journal.events) == figures(events)

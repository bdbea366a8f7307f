"""Successive halving across the death of a driver: no decision is lost, none is taken twice."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.execution.class_cache import _ActorClassCache

from orchestrator.config.experiment import Scheduler, Search
from orchestrator.ray_backend.tune import PathwayScheduler, Study
from orchestrator.tracking.record import StudyRecord, fold

METRIC = "val/accuracy"
GOOD, BAD = {METRIC: 0.9}, {METRIC: 0.1}


@dataclass
class Journal:
    """A journal in memory."""

    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def record(self) -> StudyRecord:
        return fold(self.events)

    def append(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def say(self, trial: str, *values: dict[str, float], stage: str = "search") -> None:
        """A trial was planned and has reported an epoch for each of the values."""
        words = dict.fromkeys(("arm", "label", "auxiliary", "coverage"), "")
        plan = {"trial": trial, "stage": stage, "seed": 0, "values": {}, **words}
        self.append({"kind": "planned", **plan})
        for epoch, metrics in enumerate(values, 1):
            self.append({"kind": "epoch", "trial": trial, "epoch": epoch, "metrics": metrics})

    @property
    def stopped(self) -> list[str]:
        return [event["trial"] for event in self.events if event["kind"] == "stopped"]


def resume(journal: Journal) -> PathwayScheduler:
    """The scheduler of a driver that goes on with what the journal says."""
    halving = Scheduler(kind="asha", grace_epochs=2, reduction_factor=2)
    search: Any = Search(scheduler=halving)
    return PathwayScheduler(
        Study(
            agenda=None,  # type: ignore[arg-type]  # a scheduler asks for no trial
            journal=journal,  # type: ignore[arg-type]  # what it needs of one
            mailbox=None,
            search=search,
            epochs=4,
            assign=lambda plan: {},
            draining=lambda: False,
        )
    )


def test_a_stop_that_a_dead_driver_owed_is_made_up_for() -> None:
    journal = Journal()
    journal.say("good", GOOD, GOOD, GOOD)
    journal.say("bad", BAD, BAD)
    resume(journal)
    assert journal.stopped == ["bad"]
    assert journal.events[-1]["why"] == "successive halving stopped it at epoch 2"
    resume(journal)
    assert journal.stopped == ["bad"]


@pytest.mark.parametrize(
    ("bad", "stage"),
    [
        ((BAD,), "search"),  # before its rung
        ((BAD, BAD, BAD), "search"),  # it went on from its rung: that was decided
        ((BAD, BAD), "baseline"),
        ((BAD, BAD), "control"),
    ],
)
def test_other_trials_go_on(bad: tuple[dict[str, float], ...], stage: str) -> None:
    journal = Journal()
    journal.say("good", GOOD, GOOD, GOOD)
    journal.say("bad", *bad, stage=stage)
    resume(journal)
    assert journal.stopped == []


def test_figures_that_json_does_not_know_are_figures_again() -> None:
    journal = Journal()
    journal.say("good", GOOD, GOOD)
    journal.say("broken", {METRIC: "NaN"}, {METRIC: "NaN"})  # type: ignore[dict-item]  # as stored
    resume(journal)


def test_the_process_of_a_trial_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-canary")

    class Trainable:
        pass

    class Trial:
        get_trainable_cls = staticmethod(lambda: Trainable)

    class Controller:
        _class_cache = _ActorClassCache()

    def given() -> Any:
        return Controller._class_cache.get(Trainable)._default_options.get("runtime_env")

    resume(Journal()).on_trial_add(Controller(), Trial())
    assert not given()
    Controller._class_cache = _ActorClassCache()
    assert "canary-canary" in str(given())  # Tune's own way

"""A study without Ray and without training: our agenda, sampler, scheduler and callbacks, and a
Tune that calls them as Ray's own does, one report of one trial after another."""

import hashlib
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from orchestrator.conduct.assign import planned_event
from orchestrator.config.experiment import Experiment
from orchestrator.ray_backend import tune
from orchestrator.study.agenda import Agenda
from orchestrator.tracking.events import Event, from_line, to_line
from orchestrator.tracking.record import StudyRecord, fold
from tests.unit.study_setup import DIGESTS


@dataclass
class Journal:
    """A journal in memory: it keeps what readers of a real one would see."""

    events: list[Event] = field(default_factory=list)
    record: StudyRecord = field(default_factory=StudyRecord)
    on_append: Callable[[], None] | None = None

    @classmethod
    def of(cls, events: Sequence[Event]) -> "Journal":
        """One that a driver finds."""
        return cls(deepcopy(list(events)), fold(events))

    def append(self, event: dict[str, Any]) -> bool:
        kept = from_line(to_line(event, now=float(len(self.events))))
        if not self.record.is_news(kept):
            return False
        self.events.append(kept)
        self.record.apply(kept)
        if self.on_append is not None:
            self.on_append()
        return True


class Mailbox:
    """Takes every call and answers none."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: None)


class Simulated:
    """A driver that goes on with what `journal` says, `slots` trials at a time.

    `order` decides which trial reports next. What trials report follows from their id and epoch.
    """

    def __init__(
        self, experiment: Experiment, journal: Journal, order: random.Random, slots: int = 3
    ) -> None:
        self.journal, self._order, self._slots = journal, order, slots
        self._epochs = experiment.training.epochs
        self.agenda = Agenda(experiment, DIGESTS)
        study = tune.Study(
            agenda=self.agenda,
            journal=journal,  # type: ignore[arg-type]  # what is needed of one
            mailbox=Mailbox(),
            search=experiment.search,
            epochs=self._epochs,
            assign=lambda plan: {"planned": planned_event(plan)},
            draining=lambda: False,
        )
        self.source = tune.TrialSource(study)
        self.scheduler = tune.PathwayScheduler(study)
        self._callback = tune.JournalCallback(study, self.scheduler)
        self._trials: dict[str, Any] = {}
        self._begun = 0

    @property
    def active(self) -> frozenset[str]:
        """The trials that are being trained now, by our ids."""
        return frozenset(self.source._running.values())

    def to_its_end(self) -> None:
        """Start and train until nothing is left to do."""
        while True:
            while self._starts():
                pass
            if not self._trials:
                return
            self._advance(self._order.choice(sorted(self._trials)))

    def report(self, name: str, epoch: int) -> str:
        """A trial's report reaches the scheduler, then the journal; the scheduler's answer."""
        metrics = {"val/accuracy": accuracy(name, epoch)}
        value = {"epoch": epoch, "epochs": self._epochs, "metrics": metrics}
        flat = {"report/epoch": epoch, "report/metrics/val/accuracy": metrics["val/accuracy"]}
        trial = SimpleNamespace(config={"trial": name})
        answer: str = self.scheduler.on_trial_result(None, trial, flat)
        self._callback.on_trial_result(0, [], trial, {"report": value})
        return answer

    def _starts(self) -> bool:
        if len(self._trials) == self._slots:
            return False
        tune_id = f"{self._begun:04d}"
        found = self.source.suggest(tune_id)
        if not isinstance(found, dict):
            return False
        self._begun += 1
        self._trials[tune_id] = SimpleNamespace(config=found)
        self.journal.append(
            {"kind": "started", "trial": found["trial"], "gang": "gang-0", "attempt": 1}
        )
        return True

    def _advance(self, tune_id: str) -> None:
        trial = self._trials[tune_id]
        name = trial.config["trial"]
        epochs = self.journal.record.trials[name].epochs
        epoch = epochs[-1].epoch + 1 if epochs else 1
        if epoch <= self._epochs and self.report(name, epoch) != "STOP":
            return
        if epoch > self._epochs:
            self._callback.on_trial_result(0, [], trial, {"outcome": {"kind": "finished"}})
        self.source.on_trial_complete(tune_id)
        self._callback.on_trial_complete(0, [], trial)
        del self._trials[tune_id]


def accuracy(trial: str, epoch: int) -> float:
    """What a trial reports: made up, and the same each time."""
    digest = hashlib.sha256(f"{trial}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

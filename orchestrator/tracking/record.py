"""What is known about a study: its events, folded. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from orchestrator.tracking.events import FIELDS

Status = Literal["planned", "running", "finished", "stopped", "failed"]
StudyStatus = Literal["planned", "running", "finished", "stopped"]
Purpose = Literal["search", "pretrain"]


class EpochRecord(NamedTuple):
    """One completed epoch of a trial."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    scales: dict[str, float]
    """Mean effective λ, named as in `m2pt.training.metrics.mean_scales`."""
    seconds: dict[str, float]
    time: float
    """When it was reported, in unix seconds."""


@dataclass
class TrialRecord:
    """One trial so far."""

    trial: str
    arm: str
    label: str
    stage: str
    seed: int
    values: dict[str, Any]
    auxiliary: str
    coverage: str
    status: Status = "planned"
    epochs: list[EpochRecord] = field(default_factory=list)
    epochs_planned: int | None = None
    checkpoints: dict[int, str] = field(default_factory=dict)
    """Manifest keys by completed epochs."""
    gang: str | None = None
    error: str | None = None
    why: str | None = None
    attempts: int = 0
    planned: float | None = None
    started: float | None = None
    ended: float | None = None
    tested: dict[str, float] = field(default_factory=dict)
    exported: str | None = None
    proof: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Has it ended, one way or another?"""
        return self.status in ("finished", "stopped", "failed")

    def at(self, epoch: int) -> EpochRecord | None:
        """What it reported for `epoch`."""
        return next((entry for entry in reversed(self.epochs) if entry.epoch == epoch), None)


@dataclass
class AuxiliaryRecord:
    """An auxiliary whose weights are ready; `audio@20` is `audio` at an epoch that was kept."""

    name: str
    sha256: str
    seconds: float
    metrics: dict[str, float]
    epoch: int | None = None
    """Of its pre-training."""
    fingerprint: str = ""
    """Of its pre-training (`study.identity`)."""
    provenance: dict[str, Any] | None = None
    """Where the weights come from (`m2pt.weights.provenance`), and `warnings` about that."""
    started: str = ""
    """Of the target's: what the file's model takes of them, in words."""


@dataclass
class GangRecord:
    """A gang: its newest attempt, and what ended the earlier ones."""

    gang: str
    attempt: int = 0
    workers: list[dict[str, Any]] = field(default_factory=list)
    open: bool = False
    seconds: float = 0.0
    lost: list[tuple[int, str]] = field(default_factory=list)
    """(attempt, why) of each loss."""


@dataclass
class StudyRecord:
    """One study so far. Made by `fold`; `apply` moves it on by one event."""

    status: StudyStatus = "planned"
    experiment: dict[str, Any] = field(default_factory=dict)
    experiment_sha256: str = ""
    purpose: Purpose = "search"
    """A study with the purpose `pretrain` ends where trials would begin."""
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    """By trial id, in the order in which they were planned."""
    auxiliaries: dict[str, AuxiliaryRecord] = field(default_factory=dict)
    pretraining: dict[str, dict[int, EpochRecord]] = field(default_factory=dict)
    """What pre-trainings reported, by auxiliary and epoch."""
    gangs: dict[str, GangRecord] = field(default_factory=dict)
    takeovers: int = 0
    verdict: str | None = None
    why: str | None = None
    started: float | None = None
    ended: float | None = None
    rebuilt: int = 0
    """Events that were lost and made up for from manifests."""

    def apply(self, event: Mapping[str, Any]) -> None:
        """Move on by one event. What says nothing new, or is of an unknown kind, is passed over."""
        if not self.is_news(event):
            return
        kind, time = event["kind"], float(event.get("time", 0.0))
        if kind in _WORK:
            self.status, self.ended, self.why, self.verdict = "running", None, None, None
        if self.started is None:
            self.started = time
        self.rebuilt += bool(event.get("rebuilt", False))
        if kind == "planned":
            self.trials[event["trial"]] = _planned(event, time)
        elif kind in _OF_TRIALS:
            if (trial := self.trials.get(event["trial"])) is not None:
                _OF_TRIALS[kind](trial, event, time)
        elif kind in _OF_STUDIES:
            _OF_STUDIES[kind](self, event, time)

    def is_news(self, event: Mapping[str, Any]) -> bool:
        """Does `event` say what is not known yet?

        A trial that was started anew reports epochs a second time, and ends but once.
        """
        if event["kind"] == "auxiliary_epoch":
            return event["epoch"] not in self.pretraining.get(event["name"], {})
        kind, trial = event["kind"], self.trials.get(event.get("trial", ""))
        if trial is None:
            return True
        match kind:
            case "planned":
                return False
            case "tested" | "exported":
                return True
            case "epoch":
                return not trial.over and trial.at(event["epoch"]) is None
            case "checkpoint":
                return not trial.over and trial.checkpoints.get(event["epoch"]) != event["key"]
        return not trial.over


def fold(events: Iterable[Mapping[str, Any]]) -> StudyRecord:
    """The record that `events`, in order, make."""
    record = StudyRecord()
    for event in events:
        record.apply(event)
    return record


def _planned(event: Mapping[str, Any], time: float) -> TrialRecord:
    plan = {name: event[name] for name in FIELDS["planned"]}
    return TrialRecord(**plan, planned=time)


def _started(trial: TrialRecord, event: Mapping[str, Any], time: float) -> None:
    trial.status, trial.gang = "running", event["gang"]
    trial.attempts = max(trial.attempts + 1, int(event["attempt"]))
    if trial.started is None:
        trial.started = time


def _epoch(trial: TrialRecord, event: Mapping[str, Any], time: float) -> None:
    trial.status = "running"
    trial.epochs.append(_epoch_record(event, time))
    trial.epochs.sort(key=lambda entry: entry.epoch)
    trial.epochs_planned = event.get("epochs", trial.epochs_planned)
    if trial.started is None:
        trial.started = time


def _epoch_record(event: Mapping[str, Any], time: float) -> EpochRecord:
    metrics, scales, seconds = (
        _floats(event.get(part)) for part in ("metrics", "scales", "seconds")
    )
    return EpochRecord(int(event["epoch"]), metrics, scales, seconds, time)


def _checkpoint(trial: TrialRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    trial.checkpoints[int(event["epoch"])] = event["key"]


def _ended(trial: TrialRecord, event: Mapping[str, Any], time: float) -> None:
    trial.status, trial.ended = event["kind"], time
    trial.why, trial.error = event.get("why"), event.get("error")
    trial.attempts = int(event.get("attempts", trial.attempts))


def _tested(trial: TrialRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    trial.tested = _floats(event["metrics"])


def _exported(trial: TrialRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    trial.exported, trial.proof = event["key"], event.get("proof")


def _study_started(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    record.experiment, record.experiment_sha256 = event["experiment"], event["experiment_sha256"]
    record.purpose = event.get("purpose", "search")


def _takeover(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    del event, time
    record.takeovers += 1
    for gang in record.gangs.values():  # they lived in the process that was taken over from
        gang.open = False


def _auxiliary_epoch(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    entry = _epoch_record(event, time)
    record.pretraining.setdefault(event["name"], {})[entry.epoch] = entry


def _auxiliary_ready(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    record.auxiliaries[event["name"]] = AuxiliaryRecord(
        event["name"],
        event["sha256"],
        float(event.get("seconds", 0.0)),
        _floats(event.get("metrics")),
        event.get("epoch"),
        event.get("fingerprint", ""),
        started=event.get("started", {}).get("summary", ""),
        provenance=said if isinstance(said := event.get("provenance"), dict) else None,
    )


def _gang_opened(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    gang = record.gangs.setdefault(event["gang"], GangRecord(event["gang"]))
    gang.attempt, gang.open = int(event["attempt"]), True
    gang.workers, gang.seconds = event.get("workers", []), float(event.get("seconds", 0.0))


def _gang_lost(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    del time
    gang = record.gangs.setdefault(event["gang"], GangRecord(event["gang"]))
    gang.open = False
    gang.lost.append((int(event["attempt"]), event["why"]))


def _study_finished(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    record.status, record.verdict, record.ended = "finished", event["verdict"], time


def _study_stopped(record: StudyRecord, event: Mapping[str, Any], time: float) -> None:
    record.status, record.why, record.ended = "stopped", event["why"], time


_WORK = frozenset({"study_started", "planned", "started", "gang_opened"})
"""What shows that a study runs, also after it was stopped or finished before."""

_OF_TRIALS: Mapping[str, Callable[[TrialRecord, Mapping[str, Any], float], None]] = {
    "started": _started,
    "epoch": _epoch,
    "checkpoint": _checkpoint,
    "finished": _ended,
    "stopped": _ended,
    "failed": _ended,
    "tested": _tested,
    "exported": _exported,
}

_OF_STUDIES: Mapping[str, Callable[[StudyRecord, Mapping[str, Any], float], None]] = {
    "study_started": _study_started,
    "takeover": _takeover,
    "auxiliary_epoch": _auxiliary_epoch,
    "auxiliary_ready": _auxiliary_ready,
    "gang_opened": _gang_opened,
    "gang_lost": _gang_lost,
    "study_finished": _study_finished,
    "study_stopped": _study_stopped,
}


def _floats(values: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (values or {}).items()}

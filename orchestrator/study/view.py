"""What study decisions read of a record: the shape that `tracking.record.StudyRecord` has."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Literal, Protocol, TypeAlias

Stage: TypeAlias = Literal["baseline", "search", "confirm", "control", "rival"]
UNFINISHED = ("planned", "running")
ENDED_WELL = ("finished", "stopped")


class EpochView(Protocol):
    """One completed epoch."""

    @property
    def epoch(self) -> int:
        """Counted from 1."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """By name, for example val/accuracy."""

    @property
    def scales(self) -> Mapping[str, float]:
        """λ by metric; empty without a pathway."""


class TrialView(Protocol):
    """One trial so far."""

    @property
    def trial(self) -> str:
        """Trial id."""

    @property
    def arm(self) -> str:
        """Arm id: that of the trial without its seed."""

    @property
    def label(self) -> str:
        """The arm in words."""

    @property
    def stage(self) -> str:
        """baseline, search, confirm, control or rival."""

    @property
    def seed(self) -> int:
        """Seed of the trial."""

    @property
    def values(self) -> Mapping[str, Any]:
        """What was set in the experiment, by dotted path."""

    @property
    def auxiliary(self) -> str:
        """The auxiliaries in words."""

    @property
    def coverage(self) -> str:
        """The coverage in words."""

    @property
    def status(self) -> str:
        """planned, running, finished, stopped or failed."""

    @property
    def epochs(self) -> Sequence[EpochView]:
        """Completed epochs, in order."""


class RecordView(Protocol):
    """One study so far."""

    @property
    def trials(self) -> Mapping[str, TrialView]:
        """By trial id, in the order in which they were planned."""


class KeptTrial(TrialView, Protocol):
    """One trial so far, and what was kept of it."""

    @property
    def exported(self) -> str | None:
        """Where its export lies, if it was exported."""


class StudyView(Protocol):
    """One study so far, and how far it is."""

    @property
    def status(self) -> str:
        """planned, running, finished or stopped."""

    @property
    def trials(self) -> Mapping[str, KeptTrial]:
        """By trial id, in the order in which they were planned."""


def trained(trial: TrialView) -> int:
    """How many epochs the trial has completed."""
    return max((epoch.epoch for epoch in trial.epochs), default=0)


def metric_at(trial: TrialView, metric: str, epoch: int) -> float | None:
    """A trial's metric after `epoch` epochs; None where it is missing or not finite."""
    for done in trial.epochs:
        if done.epoch == epoch:
            value = done.metrics.get(metric)
            return value if value is not None and isfinite(value) else None
    return None


def last_metric(trial: TrialView, metric: str) -> float | None:
    """A trial's metric after its last completed epoch."""
    return metric_at(trial, metric, trained(trial))


def value_text(value: Any) -> str:
    """A value of a search space as a file has it, short."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(entry) for entry in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)

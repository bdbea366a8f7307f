"""Which states of trials are kept, and which may go. Pure: decided here, carried out elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Protocol, TypeVar

from orchestrator.config.experiment import Experiment
from orchestrator.study.selection import leaderboard
from orchestrator.study.settlement import compared, to_export
from orchestrator.study.view import UNFINISHED, StudyView


class Stored(Protocol):
    """A complete checkpoint of a trial, as its manifest tells of it."""

    @property
    def step(self) -> int:
        """Completed epochs."""

    @property
    def epoch(self) -> int:
        """The fencing epoch under which it was written."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """`epochs`: what the trial reported so far, each with `epoch` and `metrics`."""


S = TypeVar("S", bound=Stored)


@dataclass(frozen=True)
class TrialRetention:
    """Of one trial's complete checkpoints: the `last` newest stay, and the `best` by `metric`.

    A checkpoint may be both. The newest always stays: it is what a trial resumes from, what is
    settled and exported, and where a trial stands while it awaits a decision at a rung.
    """

    last: int = 1
    best: int = 0
    metric: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0:
            raise ValueError(f"last: at least 1, best: at least 0; got {self.last}, {self.best}")

    def kept(self, stored: Sequence[S]) -> list[S]:
        """Those of the complete checkpoints `stored` that stay, the newest first."""
        newest = sorted(stored, key=_age, reverse=True)
        scored = [(score, one) for one in newest if (score := self._score(one)) is not None]
        best = [one for _, one in sorted(scored, key=lambda pair: -pair[0])][: self.best]
        chosen = {_age(one) for one in (*newest[: self.last], *best)}
        return [one for one in newest if _age(one) in chosen]

    def _score(self, one: S) -> float | None:
        """More is better; None where the metric is missing or not finite."""
        for entry in one.meta.get("epochs", ()):
            if entry.get("epoch") == one.step:
                value = float(entry.get("metrics", {}).get(self.metric, "nan"))
                return (value if self.mode == "max" else -value) if isfinite(value) else None
        return None


def retention_of(experiment: Experiment) -> TrialRetention:
    """What the experiment's `checkpoints` say about each of its trials."""
    kept, search = experiment.checkpoints, experiment.search
    return TrialRetention(kept.keep_last, kept.keep_best, search.metric, search.mode)


def released(record: StudyView, experiment: Experiment) -> tuple[str, ...]:
    """The trials whose checkpoints may all go, by `checkpoints.keep_trials`, in order.

    None before the study is finished, and none where the key is null. What stays is the state of
    the best trials of the leaderboard, of every trial that the verdict compares, of those that
    were exported and the one that `export` would choose, and of whatever has not ended.
    """
    most = experiment.checkpoints.keep_trials
    if most is None or record.status != "finished":
        return ()
    kept = {*_best_first(record, experiment)[:most], *_needed(record, experiment)}
    return tuple(
        name
        for name, trial in record.trials.items()
        if name not in kept and trial.status not in UNFINISHED
    )


def _best_first(record: StudyView, experiment: Experiment) -> list[str]:
    """The trials behind the leaderboard's figures: arm by arm, in each the best seed first."""
    highest_first = experiment.search.mode == "max"
    names: list[str] = []
    for row in leaderboard(record, experiment):
        seeds = sorted(row.metrics, key=row.metrics.__getitem__, reverse=highest_first)
        names += [row.trials[seed] for seed in seeds]
    return names


def _needed(record: StudyView, experiment: Experiment) -> set[str]:
    """What the study's settlement, verdict, report and export speak of."""
    names = {name for row in compared(record, experiment) for name in row.trials.values()}
    names |= {name for name, trial in record.trials.items() if trial.exported is not None}
    chosen = to_export(record, experiment)
    return names if chosen is None else names | {chosen}


def _age(one: Stored) -> tuple[int, int]:
    """Orders the checkpoints of a trial, and names one of them."""
    return one.step, one.epoch

"""How long a study takes on the machine where a few of its steps were timed. Pure."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from orchestrator.config.experiment import Budget
from orchestrator.study.budget import WORDS, Cap, amount

START_SECONDS = 40.0
"""Until Ray runs and two gangs stand: so long on two cores, less where there are more."""
TRIAL_SECONDS = 0.5
"""From one trial's last epoch to the next one's first, on a gang that is open."""
END_SECONDS = 8.0
"""Test split, export, proof, report and MLflow, for a small model."""


class Range(NamedTuple):
    """From one figure to another; of a study, if trials are stopped as expected, or all run out."""

    least: float
    most: float


@dataclass(frozen=True)
class EpochTime:
    """Seconds of one epoch of one trial on one gang.

    Attributes:
        step: one optimiser step; `steps` of them make an epoch.
        evaluation: of the validation split.
        checkpoint: to make one; storing it is not in it.
    """

    step: float
    steps: int
    evaluation: float
    checkpoint: float

    @property
    def seconds(self) -> float:
        """The whole epoch, without a checkpoint."""
        return self.steps * self.step + self.evaluation


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and where.

    Attributes:
        machine: in words, and whether steps ran on an `accelerator` of it; `gangs` of the study
            fit on it (0: not even one).
        samples: in a measured step; `of_samples` in a step of a worker of the study.
        plain: without an auxiliary.
        pathway: with `borrowed` auxiliary weights; None where no trial has any.
        pretraining: seconds by auxiliary.
        took: seconds that the measuring itself took.
    """

    machine: str
    accelerator: bool
    gangs: int
    samples: int
    of_samples: int
    plain: EpochTime
    pathway: EpochTime | None
    borrowed: int
    pretraining: Mapping[str, float]
    took: float

    def epoch(self, borrowed: int) -> EpochTime:
        """An epoch with so many borrowed weights: on the line through the two that are known."""
        if self.pathway is None or not self.borrowed:
            return self.plain
        share = borrowed / self.borrowed

        def between(plain: float, pathway: float) -> float:
            return plain + share * (pathway - plain)

        return replace(
            self.plain,
            step=between(self.plain.step, self.pathway.step),
            evaluation=between(self.plain.evaluation, self.pathway.evaluation),
            checkpoint=between(self.plain.checkpoint, self.pathway.checkpoint),
        )


@dataclass(frozen=True)
class ForeseenTrial:
    """A trial of the study.

    Attributes:
        borrowed: auxiliary weights.
        rungs: epochs after which it may be stopped.
        going_on: which share of such trials is expected to train from the start, and beyond each
            rung.
        stored_every: epochs from one checkpoint to the next.
    """

    borrowed: int
    epochs: int
    rungs: tuple[int, ...]
    going_on: tuple[float, ...]
    stored_every: int
    checkpoint_bytes: int

    def seconds(self, rehearsal: Rehearsal, *, stopped: bool) -> float:
        """Of training: if it runs out, or as expected where it is `stopped`."""
        time = rehearsal.epoch(self.borrowed)
        return sum(
            share * (epochs * time.seconds + stored * time.checkpoint)
            for share, epochs, stored in self._segments(stopped=stopped)
        )

    @property
    def stored(self) -> int:
        """How many checkpoints it writes if it runs out."""
        return sum(stored for _, _, stored in self._segments(stopped=False))

    def written_bytes(self, *, stopped: bool) -> float:
        """Of checkpoints, as `seconds`."""
        return sum(
            share * stored * self.checkpoint_bytes
            for share, _, stored in self._segments(stopped=stopped)
        )

    def _segments(self, *, stopped: bool) -> Iterator[tuple[float, int, int]]:
        """(share that trains in it, epochs, checkpoints) between two rungs."""
        edges = pairwise([0, *self.rungs, self.epochs])
        for (before, last), share in zip(edges, self.going_on, strict=True):
            stored = sum(
                epoch == self.epochs or epoch % self.stored_every == 0 or epoch in self.rungs
                for epoch in range(before + 1, last + 1)
            )
            yield (share if stopped else 1.0), last - before, stored


@dataclass(frozen=True)
class Forecast:
    """Of a whole study, on machines like the one that was measured.

    Attributes:
        gangs: that the times are for.
        wall_seconds: of the study; `one_gang_seconds` if one gang did it all.
        training_hours: worker-hours, as `budget.training_hours` counts them.
        trial_seconds: of the shortest and of the longest trial that runs out.
    """

    gangs: int
    wall_seconds: Range
    one_gang_seconds: Range
    training_hours: Range
    trial_seconds: Range


def forecast(
    stages: Sequence[Sequence[ForeseenTrial]], rehearsal: Rehearsal, *, workers: int, gangs: int
) -> Forecast:
    """Foresee a study whose stages follow one another, each trial on one of `gangs` gangs."""
    each = [
        [[trial.seconds(rehearsal, stopped=stopped) for trial in stage] for stage in stages]
        for stopped in (True, False)
    ]
    making = list(rehearsal.pretraining.values())

    def wall(trials: list[list[float]], on: int) -> float:
        spans = [[seconds + TRIAL_SECONDS for seconds in stage] for stage in trials]
        return START_SECONDS + sum(_makespan(some, on) for some in [making, *spans]) + END_SECONDS

    def hours(trials: list[list[float]]) -> float:
        return workers * (sum(making) + sum(map(sum, trials))) / 3600

    whole = [seconds for stage in each[1] for seconds in stage]
    return Forecast(
        gangs=gangs,
        wall_seconds=Range(*(wall(trials, gangs) for trials in each)),
        one_gang_seconds=Range(*(wall(trials, 1) for trials in each)),
        training_hours=Range(*map(hours, each)),
        trial_seconds=Range(min(whole), max(whole)),
    )


def written(stages: Iterable[Sequence[ForeseenTrial]]) -> Range:
    """Bytes of checkpoints, over all trials of a study."""
    trials = [trial for stage in stages for trial in stage]
    return Range(
        *(sum(t.written_bytes(stopped=stopped) for t in trials) for stopped in (True, False))
    )


def going_on(trials: int, rungs: int, reduction_factor: int) -> tuple[float, ...]:
    """Which share of `trials` trials trains from the start, and beyond each rung, as expected.

    Ray's ASHA lets a trial go on whose figure is at least the (1 - 1/reduction_factor) quantile of
    those seen before at its rung; the first one always. Expected if figures come in random order.
    """
    shares, left = [1.0], float(trials)
    for _ in range(rungs):
        left = _survivors(left, reduction_factor)
        shares.append(left / trials)
    return tuple(shares)


def exceeded(budget: Budget, foreseen: Forecast) -> list[str]:
    """In words, the caps that the study is foreseen to reach before it is done."""
    hours: dict[Cap, Range] = {
        "wall_clock_hours": Range(*(seconds / 3600 for seconds in foreseen.wall_seconds)),
        "training_hours": foreseen.training_hours,
    }
    said = []
    for cap, span in hours.items():
        limit = getattr(budget, cap)
        if limit is not None and span.most > limit:
            said.append(
                f"budget.{cap}: {amount(limit)} {WORDS[cap]} "
                f"{'will' if span.least > limit else 'may'} be spent before the study is done: "
                f"{amount(span.least)} to {amount(span.most)} are foreseen"
            )
    return said


def _survivors(count: float, reduction_factor: int) -> float:
    """How many of `count` trials that come to a rung one by one go on; linear between counts."""
    whole, rest = divmod(count, 1)
    chances = [_chance(before, reduction_factor) for before in range(int(whole) + 1)]
    return sum(chances[:-1]) + rest * chances[-1]


def _chance(before: int, reduction_factor: int) -> float:
    """That a trial goes on when `before` others have come to the rung."""
    if not before:
        return 1.0
    below = (1 - 1 / reduction_factor) * (before - 1)
    return (before - below) / (before + 1)


def _makespan(seconds: Iterable[float], gangs: int) -> float:
    """Until the last is done, if each in turn goes to the first gang that is free."""
    free = [0.0] * gangs
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)

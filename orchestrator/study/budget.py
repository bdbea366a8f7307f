"""What a study has spent, and whether a cap of its experiment is reached. Pure.

Spending is read from the journal's events alone, so every owner of a study, and `status` from any
terminal, sees the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator.config.experiment import Budget

Event = Mapping[str, Any]
Cap = Literal["wall_clock_hours", "trials", "training_hours"]

WORDS: Mapping[Cap, str] = {
    "wall_clock_hours": "hours of wall clock",
    "trials": "trials",
    "training_hours": "worker-hours of training",
}
"""What each cap counts."""

_HOUR_SECONDS = 3600.0
_TRAINING = ("train", "evaluate", "checkpoint")


@dataclass(frozen=True)
class Spent:
    """What a study has taken so far.

    Attributes:
        wall_clock_hours: during which somebody owned the study, over all its owners.
        trials: started, of all stages, however often each was interrupted.
        training_hours: in which workers trained, evaluated and stored trials, or pre-trained
            auxiliaries; epochs that were cut short and gangs that wait are not in it.
        held_back: the trials' cap was what ended the study last: more would come.
    """

    wall_clock_hours: float = 0.0
    trials: int = 0
    training_hours: float = 0.0
    held_back: bool = False


@dataclass(frozen=True)
class Reached:
    """A cap that is reached."""

    cap: Cap
    spent: float
    limit: float

    @property
    def why(self) -> str:
        """In words, with the figures."""
        figures = f"{amount(self.spent)} of {amount(self.limit)} {WORDS[self.cap]}"
        return f"budget.{self.cap} is spent: {figures}"

    @property
    def larger(self) -> str:
        """A setting that would let the study go on."""
        return f"budget.{self.cap}={amount(2 * max(self.limit, self.spent))}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def reached(spent: Spent, budget: Budget) -> Reached | None:
    """The first cap that is reached; None while the study may go on.

    The cap on trials lets those that were started run out (`Agenda` starts no more), so it is
    reached only once it has held back a trial.
    """
    caps: tuple[Cap, ...] = ("wall_clock_hours", "training_hours", "trials")
    for cap in caps:
        limit = getattr(budget, cap)
        used = float(getattr(spent, cap))
        if limit is not None and used >= limit and (cap != "trials" or spent.held_back):
            return Reached(cap, used, float(limit))
    return None


def amount(value: float) -> str:
    """A figure of a budget: whole as it is, others with three digits."""
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


@dataclass
class Meter:
    """Adds up what the events of a study say, in their order."""

    _periods: list[tuple[float, float]] = field(default_factory=list)
    """(first, last) event of each owner, in unix seconds."""
    _workers: int = 1
    _trials: set[str] = field(default_factory=set)
    _made: set[str] = field(default_factory=set)
    _worker_seconds: float = 0.0
    _held_back: bool = False

    def observe(self, event: Event) -> None:
        """Move on by one event of the journal."""
        kind = event["kind"]
        self._note_time(kind, float(event.get("time", 0.0)))
        if kind == "study_started":
            resources = event["experiment"].get("resources", {})
            self._workers = int(resources.get("workers", 1))
        elif kind == "planned":
            self._trials.add(event["trial"])
            self._held_back = False
        elif kind == "epoch":
            seconds = event.get("seconds") or {}
            self._work(sum(float(seconds.get(part, 0.0)) for part in _TRAINING))
        elif kind == "auxiliary_epoch":
            self._made.add(event["name"])
            seconds = event.get("seconds") or {}
            self._work(sum(float(seconds.get(part, 0.0)) for part in _TRAINING))
        elif kind == "auxiliary_ready":  # journals of before tell of no epochs
            if event["name"] not in self._made and not event.get("reused", False):
                self._work(float(event.get("seconds", 0.0)))
            self._made.add(event["name"])
        elif kind == "study_stopped":
            self._held_back = (event.get("budget") or {}).get("cap") == "trials"

    def spent(self, now: float | None = None) -> Spent:
        """So far; with `now` (unix seconds) the newest owner is at work until then."""
        periods = list(self._periods)
        if periods and now is not None:
            begin, end = periods[-1]
            periods[-1] = (begin, max(end, now))
        return Spent(
            wall_clock_hours=sum(end - begin for begin, end in periods) / _HOUR_SECONDS,
            trials=len(self._trials),
            training_hours=self._worker_seconds / _HOUR_SECONDS,
            held_back=self._held_back,
        )

    def _note_time(self, kind: str, time: float) -> None:
        """An owner is at work from its takeover to its last event."""
        periods = self._periods
        if kind == "takeover" or not periods:
            periods.append((time, time))
            return
        # what a dead owner left on its disk is journalled by the next one, under its own time
        at = -2 if time < periods[-1][0] and len(periods) > 1 else -1
        begin, end = periods[at]
        latest = periods[-1][0] if at == -2 else time
        periods[at] = (begin, max(end, min(time, latest)))

    def _work(self, seconds: float) -> None:
        self._worker_seconds += seconds * self._workers


def spent_in(events: Iterable[Event], now: float | None = None) -> Spent:
    """What `events`, in order, say was spent."""
    meter = Meter()
    for event in events:
        meter.observe(event)
    return meter.spent(now)

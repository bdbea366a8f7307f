"""Where a study's time went, from its journal alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Timing:
    """Wall-clock of the newest run of a study, in seconds."""

    gangs: int
    opening_seconds: float
    """From asking for the gangs until the last one stood."""
    window_seconds: float
    """From the first trial's assignment to the last one's: meanwhile some trial waited."""
    busy: float
    """Share of the window that gangs spent training and evaluating, 0 to 1."""
    tail_seconds: float
    """From the last assignment until the last trial ended."""
    total_seconds: float


def timing(events: Sequence[Event]) -> Timing:
    """The timing of what happened since the study was last started."""
    begins = [i for i, event in enumerate(events) if event["kind"] == "study_started"]
    run = list(events[begins[-1] :]) if begins else []
    opened = [e for e in run if e["kind"] == "gang_opened" and e["attempt"] == 1]
    starts = [e["time"] for e in run if e["kind"] == "started"]
    ends = [e["time"] for e in run if e["kind"] in ("finished", "stopped", "failed")]
    total = run[-1]["time"] - run[0]["time"] if run else 0.0
    opening = max((e.get("seconds", 0.0) for e in opened), default=0.0)
    if len(starts) < 2 or not opened:
        return Timing(len(opened), opening, 0.0, 0.0, 0.0, total)
    first, last = min(starts), max(starts)
    busy = sum(_overlap(e, first, last) for e in run if e["kind"] == "epoch")
    window = last - first
    share = busy / (window * len(opened)) if window else 0.0
    return Timing(len(opened), opening, window, share, max(ends, default=last) - last, total)


def _overlap(epoch: Event, first: float, last: float) -> float:
    """Seconds of an epoch's training and evaluation that lie between `first` and `last`."""
    seconds = sum(epoch["seconds"].get(part, 0.0) for part in ("train", "evaluate"))
    end = min(epoch["time"], last)
    return float(max(0.0, end - max(epoch["time"] - seconds, first)))

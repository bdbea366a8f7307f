"""The door to MLflow: fills a server, or an SQLite file, from a study's events, in the background.

Importing this module imports no MLflow; the tracker's own thread does. MLflow may be away for
any time: the study neither stops nor slows, and what it should hold is sent once it is back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class TrackerState:
    """How far MLflow is."""

    connected: bool
    behind: int
    """Events that MLflow does not show yet."""
    runs: int
    metrics_sent: int
    error: str | None
    """What the last attempt failed with; None when it did not."""
    compare_url: str | None
    """Shows this study's trials side by side; None until known, or without a server."""


class Tracker:
    """One study in MLflow: a parent run, one child run per trial. Never raises for a server's sake."""

    def __init__(self, tracking_uri: str, experiment: str, study: str) -> None:
        """`experiment` is the experiment's name in MLflow, `study` the study's."""
        raise NotImplementedError

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take one event of the journal: `journal.subscribe(tracker.observe, replay=True)`."""
        raise NotImplementedError

    def add_artifact(self, name: str, content: bytes | str) -> None:
        """Put a file beside the parent run: "experiment.yaml", "plan.json", "report/report.html"."""
        raise NotImplementedError

    @property
    def state(self) -> TrackerState:
        """How far MLflow is, now."""
        raise NotImplementedError

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until MLflow shows everything; False when `timeout` seconds were too few."""
        raise NotImplementedError

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and end the thread; False when MLflow misses something (it can be made up for)."""
        raise NotImplementedError

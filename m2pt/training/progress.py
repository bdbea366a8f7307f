"""Signs of life of a training: who runs it may listen, and tell slow from hung."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_listeners: list["Beats"] = []


@dataclass
class Beats:
    """When something was last heard, by `time.monotonic`."""

    last: float


def beat() -> None:
    """Something was done: a step, a batch evaluated, a file read."""
    now = time.monotonic()
    for listener in _listeners:
        listener.last = now


@contextmanager
def heard_by(beats: Beats) -> Iterator[None]:
    """Meanwhile, `beats` hears of every sign of life in this process."""
    _listeners.append(beats)
    try:
        yield
    finally:
        _listeners.remove(beats)

"""The time of day, as far as a study needs it: it never jumps while a process lives."""

import time
from functools import cache


def now() -> float:
    """Unix seconds: the wall clock as it was when this process first asked, and what passed since.

    Somebody who sets the wall clock changes neither the order of events nor what a budget has
    spent. Time that the machine sleeps passes, where the system tells (Linux).
    """
    return _began() + _passed()


@cache
def _began() -> float:
    return time.time() - _passed()


def _passed() -> float:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()

"""A trial that makes no step for long is ended: its process goes, and the gang is renewed."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from m2pt.training import progress
from orchestrator.study.failures import FailureKind

EXIT_CODE = 70
_LOOK_SECONDS = 1.0
_GRACE = 1.5
_STDERR = 2  # where Ray keeps a worker's words, whatever Python has made of sys.stderr


@contextmanager
def watched(
    hang_seconds: float | None,
    complain: Callable[[str, FailureKind], None],
    *,
    leave: Callable[[int], object] = os._exit,
) -> Iterator[None]:
    """End this process when nothing is heard of `m2pt.training.progress` for `hang_seconds`.

    Before it leaves it says so through `complain`, and prints where every thread stands. Where
    the interpreter itself is stuck, C code that needs no lock of it does the same, a little later.
    None watches nothing.
    """
    if hang_seconds is None:
        yield
        return
    ended = threading.Event()
    beats = progress.Beats(time.monotonic())

    def backstop() -> None:
        seconds = _GRACE * hang_seconds + _LOOK_SECONDS
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)

    def look() -> None:
        while not ended.wait(min(_LOOK_SECONDS, hang_seconds / 4)):
            backstop()
            silent = time.monotonic() - beats.last
            if silent >= hang_seconds:
                complain(f"hung: no step for {silent:.0f} s (failures.hang_minutes)", "hang")
                faulthandler.dump_traceback(file=_STDERR)
                leave(EXIT_CODE)
                return

    with progress.heard_by(beats):
        backstop()
        thread = threading.Thread(target=look, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()

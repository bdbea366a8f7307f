"""How a process of ours begins and ends."""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress

_PYTHONS_OWN = gc.get_threshold()
_SELDOM = (10_000, 10, 10)


def import_fast() -> None:
    """Have Python look for garbage only after many new objects.

    Torch, Ray and MLflow bring a million objects that stay. With Python's own setting, a look for
    every 700 of them, an eighth to a quarter of the time in which they are imported goes there.
    """
    gc.set_threshold(*_SELDOM)


def all_imported() -> None:
    """What is there stays, and is looked through no more; garbage is looked for as Python does.

    At the process's end it is looked through again: nanobind, in Triton, reports on the terminal
    what is left then.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.set_threshold(*_PYTHONS_OWN)


def run(main: Callable[[], int]) -> int:
    """What `main` returns: the code with which the process ends, once nothing more is due.

    Python would then take apart what was imported, object by object: two seconds of a core for
    torch, Ray and MLflow. Call it before other imports, whose own duties at the end come first.
    """
    code: list[int] = []

    def end() -> None:
        with suppress(OSError, ValueError):  # Python says itself that its output cannot be written
            sys.stdout.flush()
            sys.stderr.flush()
            if code:  # or it says what was raised
                os._exit(code[0])

    atexit.register(end)  # the first that is registered is the last that is called
    code.append(main())
    return code[0]

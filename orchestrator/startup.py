"""How a process of ours begins."""

import atexit
import gc

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

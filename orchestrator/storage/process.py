"""Processes and machines, named so that one is never taken for another."""

import os
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types

_ROUNDS = 3
"""Until nobody is left who was started while the others were ended."""


def host() -> str:
    """This machine's name, for people."""
    return platform.node() or "localhost"


def own_pid() -> int:
    """The process id of this process."""
    return os.getpid()


@lru_cache(maxsize=1)
def machine() -> str:
    """Tells this boot of this machine, and this view of its processes, from any other.

    Two containers of one machine may share its name and its boot, but not their process ids.
    """
    boot = _text(Path("/proc/sys/kernel/random/boot_id")) or f"{psutil.boot_time():.0f}"
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return f"{host()} {boot.strip()} {processes}"


def started(pid: int) -> float | None:
    """When process `pid` was started, as a number to compare; None when it is gone.

    A process that has ended and only waits for its parent to notice is gone. On Linux these are
    clock ticks since the boot, because seconds of the wall clock move when the clock is set.
    """
    if Path("/proc/self/stat").exists():
        fields = (_text(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
        if not fields or fields[0] in "ZXx":
            return None
        return float(fields[19])
    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.Error:
        return None


def kill_descendants() -> None:
    """kill -9 all processes that this one has started, and those that they have started."""
    for _ in range(_ROUNDS):
        family = psutil.Process().children(recursive=True)
        living = [one for one in family if one.is_running() and not _is_zombie(one)]
        if not living:
            return
        for one in living:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _is_zombie(one: psutil.Process) -> bool:
    try:
        return bool(one.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None

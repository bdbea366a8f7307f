"""A study in this process, and what is done to it meanwhile, by a thread beside it.

A driver of its own takes ten seconds of a core to import everything: one is needed only where it
is killed itself.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types

from orchestrator.conduct.brake import request_stop
from orchestrator.storage.lease import read_owner
from orchestrator.storage.uri import Store
from tests.studies import PATIENCE_SECONDS, events

Json = dict[str, Any]


@dataclass
class Beside:
    """What the thread sees of the study, in `storage`: a whole path, whatever folder is current."""

    storage: Path
    study: str
    over: threading.Event = field(default_factory=threading.Event)

    def events(self) -> list[Json]:
        """The journal as another terminal reads it."""
        return events(self.storage, self.study)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once that is true; the study has to go on until then."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert not self.over.is_set(), "the study ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.2)  # a look costs up to a hundredth of a second
        return found

    def stop(self) -> None:
        """Ask the study to drain, as `orchestrator stop` does."""
        store = Store.open(str(self.storage))
        owner = read_owner(store, self.study)
        if owner is not None:
            request_stop(store, self.study, "a test", epoch=owner.epoch)


@contextmanager
def meanwhile(
    storage: Path, study: str, action: Callable[[Beside], object]
) -> Iterator[Future[Any]]:
    """Do `action` in a thread while the body runs the study. What went wrong in it is raised at
    the end; the study is asked to stop then, so that the end comes."""
    beside = Beside(storage, study)

    def act() -> object:
        try:
            return action(beside)
        except BaseException:
            beside.stop()
            raise

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act)
        try:
            yield done
        finally:
            beside.over.set()
            done.result()


@contextmanager
def frozen(gang: Json) -> Iterator[None]:
    """The workers of a gang that was opened stand still: no epoch ends in the meantime."""
    pids = [worker["pid"] for worker in gang["workers"]]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def processes(title: str) -> list[psutil.Process]:
    """Those under this process that have this title; a head of Ray that it started among them."""
    family = psutil.Process().children(recursive=True)
    return [one for one in family if title in titled(one)]


def titled(process: psutil.Process) -> str:
    """What a process calls itself; "" for one that has just gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""

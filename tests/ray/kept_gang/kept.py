"""One gang that trains for one study of this process after another.

To open a gang takes 15 seconds of a core, and to close it some more; what a study does with one is
the same whoever opened it. So the tests of this folder share one gang, with the storage's
credentials of each study.
"""

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from orchestrator.ray_backend import gang, session
from orchestrator.ray_backend.gang import Gangs, gang_loop
from orchestrator.ray_backend.leases import answer
from tests.studies import PATIENCE_SECONDS, TINY, experiment, said, verb

Json = dict[str, Any]


class Switch:
    """Tells the gang whose mailbox is next. To whoever keeps it open, it is a mailbox itself."""

    def __init__(self) -> None:
        self._next: asyncio.Queue[Any] = asyncio.Queue()
        self._free = asyncio.Event()

    async def take(self) -> Any:
        """The next mailbox, and the variables of its study; None when there is none any more. The
        gang is free until then."""
        self._free.set()
        return await self._next.get()

    async def lend(self, *lent: Any) -> None:
        """The gang is to serve this one, and is not free. The mailbox is in a list, for Ray to
        leave it alone."""
        self._free.clear()
        await self._next.put(lent)

    async def returned(self) -> None:
        """Wait until the gang is free."""
        await self._free.wait()

    async def seats(self) -> Json:
        """As of a mailbox with which no gang has registered."""
        return {}

    async def close(self) -> None:
        """Let the gang end."""
        await self._next.put(None)


def kept_loop(config: Json) -> None:
    """What the worker runs: the loop of a gang, again and again."""
    while (lent := ray.get(config["mailbox"].take.remote())) is not None:
        (mailbox,), variables = lent
        with mock.patch.dict(os.environ, variables):
            gang_loop(config | {"mailbox": mailbox})


@dataclass(frozen=True)
class Lent:
    """In place of a study's own gangs, however many it would open."""

    switch: Any
    kept: Gangs
    mailbox: Any

    def __enter__(self) -> "Lent":
        credentials = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        ray.get(self.switch.lend.remote([self.mailbox], credentials))
        return self

    def __exit__(self, *error: object) -> None:
        answer(self.mailbox.close.remote(), gone=None)
        ray.get(self.switch.returned.remote(), timeout=PATIENCE_SECONDS)

    def check(self) -> None:
        self.kept.check()


@dataclass(frozen=True)
class Kept:
    """A head that this process has joined, and a gang of one worker there."""

    address: str
    cluster: session.Cluster
    switch: Any
    gangs: Gangs

    def study(self, folder: Path, *words: str, check: bool = True) -> Json:
        """As `tests.studies.verb`, for a study that trains on the gang."""
        with self._lending():
            return self.study_of_its_own_gangs(folder, *words, check=check)

    def said(self, folder: Path, *words: str) -> tuple[int, str, str]:
        """As `tests.studies.said`, for a study that trains on the gang."""
        with self._lending(), self._joined():
            return said(folder, *words, "--address", self.address)

    def study_of_its_own_gangs(self, folder: Path, *words: str, check: bool = True) -> Json:
        """As `tests.studies.verb`, for a study that opens gangs on the head."""
        with self._joined():
            done: Json = verb(folder, *words, "--address", self.address, check=check)
        return done

    def _joined(self) -> AbstractContextManager[Any]:
        return mock.patch.object(session, "connect", return_value=nullcontext(self.cluster))

    def _lending(self) -> AbstractContextManager[Any]:
        def lent(mailbox: Any, *own: Any) -> Lent:
            return Lent(self.switch, self.gangs, mailbox)

        return mock.patch.object(gang, "Gangs", lent)


@contextmanager
def kept_gang(address: str) -> Iterator[Kept]:
    """Join a head, and open the gang there."""
    with session.connect(address) as cluster:
        switch = ray.remote(num_cpus=0, max_concurrency=100)(Switch).remote()
        resources = experiment(TINY, Path("nowhere")).resources
        name = f"kept-{secrets.token_hex(4)}"
        with Gangs(switch, 1, resources, name, cluster, loop=kept_loop) as gangs:
            ray.get(switch.returned.remote(), timeout=PATIENCE_SECONDS)
            yield Kept(address, cluster, switch, gangs)

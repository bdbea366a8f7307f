"""One gang that trains for one study of this process after another.

To open a gang takes 15 seconds of a core, and to close it some more; what a study does with one is
the same whoever opened it. Studies that open their own are those of the quickstart, of a bucket, of
jobs, and all in tests/faults.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from orchestrator.ray_backend import gang, session
from orchestrator.ray_backend.gang import Gangs, gang_loop
from tests.studies import PATIENCE_SECONDS, TINY, experiment, verb

Json = dict[str, Any]
Verb = Callable[..., Any]


class Switch:
    """Tells the gang whose mailbox is next. To whoever keeps it open, it is a mailbox itself."""

    def __init__(self) -> None:
        self._next: asyncio.Queue[Any] = asyncio.Queue()
        self._free = asyncio.Event()

    async def take(self) -> Any:
        """The next mailbox; None when there is none any more. The gang is free until then."""
        self._free.set()
        return await self._next.get()

    async def lend(self, mailbox: list[Any]) -> None:
        """The gang is to serve this one (in a list, for Ray to leave it alone), and is not free."""
        self._free.clear()
        await self._next.put(mailbox[0])

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
    while (mailbox := ray.get(config["mailbox"].take.remote())) is not None:
        gang_loop(config | {"mailbox": mailbox})


@dataclass(frozen=True)
class Lent:
    """In place of a study's own gangs, however many it would open."""

    switch: Any
    kept: Gangs
    mailbox: Any

    def __enter__(self) -> "Lent":
        ray.get(self.switch.lend.remote([self.mailbox]))
        return self

    def __exit__(self, *error: object) -> None:
        ray.get(self.mailbox.close.remote())
        ray.get(self.switch.returned.remote(), timeout=PATIENCE_SECONDS)

    def check(self) -> None:
        self.kept.check()


@contextmanager
def kept_gang(address: str) -> Iterator[Verb]:
    """Join a head and open a gang of one worker there: `tests.studies.verb`, for studies on it."""
    with session.connect(address) as cluster:
        switch = ray.remote(num_cpus=0, max_concurrency=100)(Switch).remote()
        resources = experiment(TINY, Path("nowhere")).resources
        name = f"kept-{secrets.token_hex(4)}"
        with mock.patch.object(gang, "gang_loop", kept_loop):
            kept = Gangs(switch, 1, resources, name, cluster.folder).__enter__()
            ray.get(switch.returned.remote(), timeout=PATIENCE_SECONDS)

        def lent(mailbox: Any, *own: Any) -> Lent:
            return Lent(switch, kept, mailbox)

        def study(folder: Path, *words: str, check: bool = True) -> Any:
            joined = mock.patch.object(session, "connect", return_value=nullcontext(cluster))
            with joined, mock.patch.object(gang, "Gangs", lent):
                return verb(folder, *words, "--address", address, check=check)

        try:
            yield study
        finally:
            kept.__exit__()

"""Two processes at once, many times: one winner each, and nothing done twice."""

import hashlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage import blobs, layout, process
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.lease import Lease, Owner, StudyIsOwned, _to_bytes
from orchestrator.storage.uri import AlreadyThere, Store
from orchestrator.tracking.runs import _sole_opener

PATIENCE_SECONDS = 100
Work = Callable[[int, int, Callable[[], Any]], object]
"""Of a round and a contestant; it may wait for the other one."""


def race(rounds: int, work: Work) -> list[list[Any]]:
    """`work` of every round by two processes that begin it at once; what it gave to each."""
    fork = multiprocessing.get_context("fork")
    meet, gave = fork.Barrier(2), fork.Queue()

    def run(who: int) -> None:
        found: list[object] = []
        try:
            for number in range(rounds):
                meet.wait(PATIENCE_SECONDS)
                found.append(work(number, who, lambda: meet.wait(PATIENCE_SECONDS)))
        except BaseException:
            meet.abort()
            gave.put((who, f"round {len(found)}: {traceback.format_exc()}"))
        else:
            gave.put((who, found))

    both = [fork.Process(target=run, args=(who,)) for who in range(2)]
    for one in both:
        one.start()
    told = dict(gave.get(timeout=2 * PATIENCE_SECONDS) for _ in both)
    for one in both:
        one.join()
    assert all(isinstance(found, list) for found in told.values()), "\n".join(
        map(str, told.values())
    )
    return [list(pair) for pair in zip(told[0], told[1], strict=True)]


def one_winner(rounds: list[list[Any]]) -> bool:
    return all(sorted(found) == [False, True] for found in rounds)


@pytest.mark.slow
def test_a_conditional_put_has_one_winner(tmp_path: Path) -> None:
    """Each in a folder that both have to make."""
    store = Store.open(str(tmp_path))

    def claim(number: int, who: int, meet: Callable[[], Any]) -> bool:
        try:
            store.put(f"{number}/k", b"%d" % who, if_absent=True)
        except AlreadyThere:
            return False
        return True

    rounds = race(200, claim)
    assert one_winner(rounds)
    for number, found in enumerate(rounds):
        assert int(store.get(f"{number}/k")) == found.index(True)
    assert len(store.list()) == 200


def test_a_put_and_a_delete_leave_whole_objects(tmp_path: Path) -> None:
    """The folder comes and goes under the hands of who writes."""
    store = Store.open(str(tmp_path))

    def turn(number: int, who: int, meet: Callable[[], Any]) -> bool:
        if who:
            store.delete("a/b/k")
        else:
            store.put("a/b/k", b"whole")
        return True

    race(100, turn)
    assert store.list() == [] or store.get("a/b/k") == b"whole"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


class Far(FolderStore):
    """A store of another machine, which counts what is read of it."""

    def local_path(self, key: str) -> Path | None:
        return None

    def chunks(self, key: str) -> Iterator[bytes]:
        with (self._root / "reads").open("a") as file:
            file.write(f"{key}\n")
        time.sleep(0.002)  # so that the other one comes meanwhile
        yield from super().chunks(key)


def test_a_blob_is_fetched_once(tmp_path: Path) -> None:
    contents = [b"%d" % number * 1000 for number in range(50)]
    names = [blobs.put(FolderStore(tmp_path / "store"), content) for content in contents]
    store = Far(tmp_path / "store")

    def fetch(number: int, who: int, meet: Callable[[], Any]) -> str:
        found = blobs.fetch(store, names[number], tmp_path / "cache")
        return hashlib.sha256(found.read_bytes()).hexdigest()

    assert race(50, fetch) == [[name, name] for name in names]
    reads = (tmp_path / "store" / "reads").read_text().splitlines()
    assert sorted(reads) == sorted(map(layout.blob, names))


def test_a_database_has_one_opener(tmp_path: Path) -> None:
    """A number that is read, looked at and written: each would lose what the other added."""
    number_file = tmp_path / "number"
    number_file.write_text("0")

    def add(number: int, who: int, meet: Callable[[], Any]) -> bool:
        for _ in range(10):
            with _sole_opener(f"sqlite:///{tmp_path}/mlflow.db"):
                number_file.write_text(str(int(number_file.read_text()) + 1))
        return True

    race(20, add)
    assert number_file.read_text() == "400"


def lease_race(store: Store, rounds: int, **times: float) -> None:
    """Every second study had an owner whose process is gone; `times` are the lease's."""
    for number in range(1, rounds, 2):
        dead = Owner(1, "token", process.host(), process.machine(), 2**22 - 3, 1.0, time.time())
        store.put(layout.lease(f"s{number}", 1), _to_bytes(dead))

    def own(number: int, who: int, meet: Callable[[], Any]) -> bool:
        lease = None
        with suppress(StudyIsOwned):
            lease = Lease.acquire(store, f"s{number}", **times)
        meet()  # the winner still holds it when the other one is refused
        if lease is None:
            return False
        lease.check()
        # on a server whose condition lets both in, both may find the other's claim, and try again
        assert lease.epoch >= 1 + number % 2
        lease.release()
        return True

    assert one_winner(race(rounds, own))


@pytest.mark.slow
def test_a_study_has_one_owner(tmp_path: Path) -> None:
    lease_race(Store.open(str(tmp_path)), 4, heartbeat_seconds=0.05, expiry_seconds=3)


@pytest.mark.slow
def test_a_study_has_one_owner_each_time(tmp_path: Path) -> None:
    lease_race(Store.open(str(tmp_path)), 12, heartbeat_seconds=0.05, expiry_seconds=5)


@pytest.mark.slow
def test_a_study_in_a_bucket_has_one_owner(s3: str) -> None:
    lease_race(Store.open(s3), 2, heartbeat_seconds=0.2, expiry_seconds=10)

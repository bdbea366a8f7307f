"""One owner of a study at a time."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.storage import layout, process
from orchestrator.storage import lease as lease_module
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.lease import Lease, LeaseLost, Owner, StudyIsOwned, read_owner
from orchestrator.storage.uri import AlreadyThere, Store

BEAT = 0.05


def acquire(store: Store, expiry: float = 0.6) -> Lease:
    return Lease.acquire(store, "s", heartbeat_seconds=BEAT, expiry_seconds=expiry)


def write(store: Store, owner: Owner) -> None:
    content = json.dumps({"format": 1, **asdict(owner)}).encode()
    store.put(layout.lease("s", owner.epoch), content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


@pytest.fixture
def stranger() -> Owner:
    """An owner on a machine that cannot be looked into."""
    return Owner(4, "token", "far", "another boot", 1, 1.0, time.time())


def test_a_released_lease_is_free_at_once(store: Store) -> None:
    assert read_owner(store, "s") is None
    with acquire(store) as first:
        assert first.epoch == 1
        first.check()
    start = time.monotonic()
    with acquire(store, expiry=60) as second:
        assert second.epoch == 2
        assert second.token != first.token
    second.release()
    assert time.monotonic() - start < 1
    owner = read_owner(store, "s")
    assert owner is not None
    assert owner.released


def test_a_live_owner_is_named(store: Store) -> None:
    with acquire(store) as lease:
        with pytest.raises(StudyIsOwned, match=f"process {process.own_pid()} on") as owned:
            acquire(store, expiry=60)
        again = pickle.loads(pickle.dumps(owned.value))
        assert str(again) == str(owned.value)
        assert (again.pid, again.exit_code) == (process.own_pid(), 2)
        lease.check()


def test_who_takes_the_study_after_the_look_at_its_owner_keeps_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, quicker = lease_module.read_owner, list[Lease]()

    def look_and_be_late(*words: str) -> Owner | None:
        found = look(*words)  # type: ignore[arg-type]  # a store and a study
        monkeypatch.setattr(lease_module, "read_owner", look)
        quicker.append(acquire(store))
        return found

    monkeypatch.setattr(lease_module, "read_owner", look_and_be_late)
    with pytest.raises(StudyIsOwned):
        acquire(store, expiry=60)
    with quicker[0] as lease:
        lease.confirm()
        assert lease.epoch == 1


def test_a_silent_owner_is_replaced_after_a_while(store: Store, stranger: Owner) -> None:
    write(store, stranger)
    start = time.monotonic()
    with acquire(store, expiry=0.4) as lease:
        assert lease.epoch == 5
    assert 0.4 <= time.monotonic() - start < 2


def test_an_owner_whose_process_is_gone_is_replaced_at_once(store: Store, stranger: Owner) -> None:
    gone = subprocess.run([sys.executable, "-c", ""], check=True)
    assert gone.returncode == 0
    here = replace(stranger, machine=process.machine(), pid=2**22 - 3)
    reused = replace(here, pid=process.own_pid(), started=1.0)
    for owner in (here, reused):
        write(store, owner)
        start = time.monotonic()
        with acquire(store, expiry=60):
            assert time.monotonic() - start < 1
        store.delete(layout.lease("s", owner.epoch + 1))


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert process.started(process.own_pid()) is not None
    deadline = time.monotonic() + 10
    while process.started(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.started(child.pid) is None
    child.wait()


def test_an_owner_that_was_replaced_stops(store: Store, stranger: Owner) -> None:
    lease = acquire(store)
    write(store, stranger)
    assert lease.lost.wait(5)
    with pytest.raises(LeaseLost, match="lost lease epoch 1 < 4: process 1 on far has taken over"):
        lease.check()
    lease.release()
    owner = read_owner(store, "s")
    assert owner == stranger


def test_an_owner_that_was_stopped_is_not_sure_until_it_has_looked(
    store: Store, stranger: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, clock = [0.0], lease_module._clock
    monkeypatch.setattr(lease_module, "_clock", lambda: clock() + slept[0])
    lease = Lease.acquire(store, "s", heartbeat_seconds=60, expiry_seconds=15)
    sure = [lease.sure]
    slept[0] = 8.0
    sure.append(lease.sure)
    lease.check()  # it may still be the owner
    lease.confirm()
    sure.append(lease.sure)
    write(store, stranger)
    with pytest.raises(LeaseLost, match="1 < 4"):
        lease.confirm()
    assert [*sure, lease.sure] == [True, False, True, False]
    lease.release()
    assert read_owner(store, "s") == stranger


def test_epochs_grow_even_without_the_leases(store: Store) -> None:
    store.put(layout.segment("s", 6, 0), b"")
    with acquire(store) as lease:
        assert lease.epoch == 7
    store.delete(layout.lease("s", 7))
    with acquire(store) as lease:
        assert lease.epoch == 7


def test_an_owner_outlives_a_store_that_is_away(store: Store, tmp_path: Path) -> None:
    class Away(FolderStore):
        away = False

        def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
            if self.away:
                raise StorageError("away")
            super().put(key, data, if_absent=if_absent)

    shaky = Away(tmp_path)
    lease = acquire(shaky)
    shaky.away = True
    time.sleep(4 * BEAT)
    shaky.away = False
    lease.check()
    before = read_owner(store, "s")
    time.sleep(4 * BEAT)
    after = read_owner(store, "s")
    assert before is not None
    assert after is not None
    assert after.counter > before.counter
    lease.release()


class LooseStore(FolderStore):
    """A store whose conditional put looks first and writes later, as some servers do."""

    settle_seconds = 0.4

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        if if_absent:
            if self.exists(key):
                raise AlreadyThere(key)
            time.sleep(0.1)
        super().put(key, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FolderStore, LooseStore])
def test_of_many_at_once_one_becomes_the_owner(kind: type[FolderStore], tmp_path: Path) -> None:
    won: list[Lease] = []
    refused: list[StudyIsOwned] = []
    start = threading.Barrier(4)

    def compete() -> None:
        start.wait()
        try:
            won.append(acquire(kind(tmp_path), expiry=30))
        except StudyIsOwned as error:
            refused.append(error)

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 3
    won[0].check()
    won[0].release()


def _own_for_ever(root: Path) -> None:
    acquire(Store.open(str(root)))
    time.sleep(60)


def test_a_killed_owner_is_replaced_at_once(store: Store, tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_own_for_ever, args=(tmp_path,))
    child.start()
    while read_owner(store, "s") is None:
        time.sleep(0.02)
    child.kill()
    child.join()
    start = time.monotonic()
    with acquire(store, expiry=60) as lease:
        assert lease.epoch == 2
    assert time.monotonic() - start < 1

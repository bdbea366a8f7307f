"""The journal: one writer, takeovers, spools, lost events."""

import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.storage import layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.lease import Lease, LeaseLost, read_owner
from orchestrator.storage.uri import Damaged, Store
from orchestrator.tracking.journal import Event, Journal, JournalReader, read_events
from orchestrator.tracking.record import fold

Json = dict[str, Any]


class ShakyStore(FolderStore):
    """A store that can be away, and that can lose its answer to a put."""

    away = False
    mute = False

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        if self.away:
            raise StorageError(f"cannot write {key}: away")
        super().put(key, data, if_absent=if_absent)
        if self.mute:
            self.mute = False
            raise StorageError(f"cannot write {key}: no answer")


@pytest.fixture
def store(tmp_path: Path) -> ShakyStore:
    return ShakyStore(tmp_path / "store")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def running(store: Store, spool: Path, flush_seconds: float = 0.02) -> Iterator[Journal]:
    """A journal whose owner ends in good order."""
    with (
        Lease.acquire(store, "s") as lease,
        Journal.open(store, "s", lease, spool=spool, flush_seconds=flush_seconds) as journal,
    ):
        yield journal


def planned(trial: str) -> Json:
    plan = {"arm": "a", "label": "l", "stage": "search", "auxiliary": "none", "coverage": "all"}
    return {"kind": "planned", "trial": trial, "seed": 0, "values": {}, **plan}


def epoch(trial: str, number: int) -> Json:
    return {"kind": "epoch", "trial": trial, "epoch": number, "metrics": {"val/loss": 1.0 / number}}


def kinds(events: list[Event]) -> list[str]:
    return [event["kind"] for event in events]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_appended_is_read_and_taken_over(store: Store, spool: Path) -> None:
    assert read_events(store, "s") == []
    with running(store, spool) as journal:
        assert journal.append(planned("t"))
        assert journal.append(epoch("t", 1))
        assert journal.flush(5)
        assert journal.behind == 0
        assert read_events(store, "s") == journal.events
        before = journal.events
    assert not list(spool.iterdir())
    with running(store, spool) as journal:
        assert journal.events[:-1] == before
        assert not journal.append(epoch("t", 1))
        assert journal.append({"kind": "finished", "trial": "t"})
        assert not journal.append({"kind": "failed", "trial": "t", "error": "late"})
    events = read_events(store, "s")
    assert kinds(events) == ["takeover", "planned", "epoch", "takeover", "finished"]
    assert journal.record == fold(events)
    assert events[3]["segments"] == ["journal/000001-000000.jsonl", "journal/000001-000001.jsonl"]
    with pytest.raises(StorageError, match="closed"):
        journal.append(planned("u"))


def test_an_end_is_in_the_store_at_once(store: Store, spool: Path) -> None:
    with running(store, spool, flush_seconds=60) as journal:
        journal.append(planned("t"))
        time.sleep(0.1)
        assert journal.behind == 1
        journal.append({"kind": "finished", "trial": "t"})
        wait_for(lambda: kinds(read_events(store, "s"))[-1] == "finished")


def test_any_thread_may_append_and_listeners_hear_it_in_order(store: Store, spool: Path) -> None:
    with running(store, spool) as journal:
        journal.append(planned("t0"))
        heard: list[Event] = []
        journal.subscribe(heard.append, replay=True)
        later: list[Event] = []
        journal.subscribe(later.append)

        def work(trial: str) -> None:
            journal.append(planned(trial))
            for number in range(1, 51):
                journal.append(epoch(trial, number))

        threads = [threading.Thread(target=work, args=(f"t{who}",)) for who in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert heard == journal.events
        assert later == heard[2:]
        assert len(later) == 4 * 51
    assert read_events(store, "s") == heard


def test_readers_fetch_a_segment_once(store: Store, spool: Path) -> None:
    class Counting(ShakyStore):
        reads = 0

        def chunks(self, key: str) -> Iterator[bytes]:
            Counting.reads += 1
            return super().chunks(key)

    with running(store, spool) as journal:
        journal.append(planned("t"))
        journal.flush()
        reader = JournalReader(Counting(spool.parent / "store"), "s")
        assert reader.read() == reader.read() == journal.events
        assert Counting.reads == 2


def test_the_study_goes_on_while_the_store_is_away(
    store: ShakyStore, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(store, spool) as journal:
        journal.append(planned("t"))
        journal.flush()
        store.away = True
        for number in range(1, 6):
            journal.append(epoch("t", number))
        assert not journal.flush(0.3)
        assert journal.behind == 5
        store.away = False
        assert journal.flush(10)
        assert read_events(store, "s") == journal.events
    outage = [
        entry.getMessage() for entry in caplog.records if "takes events" in entry.getMessage()
    ]
    assert len(outage) == 1


def test_a_lost_answer_does_not_write_twice(store: ShakyStore, spool: Path) -> None:
    with running(store, spool) as journal:
        store.mute = True
        journal.append(planned("t"))
        journal.append({"kind": "finished", "trial": "t"})
        assert journal.flush(10)
        assert not store.mute
    assert kinds(read_events(store, "s")) == ["takeover", "planned", "finished"]


def test_what_the_store_never_took_comes_from_the_spool(store: ShakyStore, spool: Path) -> None:
    with running(store, spool) as journal:
        journal.append(planned("t"))
        journal.flush()
        store.away = True
        journal.append(epoch("t", 1))
        journal.append({"kind": "finished", "trial": "t"})
        assert not journal.close(0.2)
        store.away = False
        lost = journal.events
    assert kinds(read_events(store, "s")) == ["takeover", "planned"]
    (left,) = spool.iterdir()
    with left.open("ab") as file:
        file.write(b'4 {"kind":"failed","tri')
    with running(store, spool) as journal:
        assert kinds(journal.events[2:]) == ["takeover", "epoch", "finished"]
        assert journal.events[3:] == lost[2:]
        assert len(list(spool.iterdir())) == 1
    assert not list(spool.iterdir())


def _write_and_die(root: Path, spool: Path) -> None:
    store = Store.open(str(root))
    lease = Lease.acquire(store, "s")
    journal = Journal.open(store, "s", lease, spool=spool, flush_seconds=60)
    journal.append(planned("t"))
    journal.append(epoch("t", 1))
    os.kill(os.getpid(), 9)


def test_a_killed_driver_loses_nothing_on_its_machine(store: Store, spool: Path) -> None:
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=_write_and_die, args=(spool.parent / "store", spool))
    child.start()
    child.join()
    assert child.exitcode == -9
    assert kinds(read_events(store, "s")) == ["takeover"]
    with running(store, spool) as journal:
        assert kinds(journal.events) == ["takeover", "takeover", "planned", "epoch"]


def test_a_spool_that_cannot_be_written_only_costs_a_warning(
    store: Store, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool.write_text("a file is in the way")
    with caplog.at_level(logging.WARNING), running(store, spool) as journal:
        journal.append(planned("t"))
    assert "not spooled" in caplog.text
    assert kinds(read_events(store, "s")) == ["takeover", "planned"]


def test_a_stale_owner_writes_what_nobody_sees(store: Store, spool: Path) -> None:
    stale = Lease.acquire(store, "s", heartbeat_seconds=60)
    old = Journal.open(store, "s", stale, spool=spool, flush_seconds=0.02)
    old.append(planned("t"))
    old.flush()
    trial = TrialCheckpoints(store, "s", "t", old.accepted)
    accepted = trial.save(1, {"state": b"1"}, {})
    stale_owner = json.loads(store.get(layout.lease("s", 1)))
    stale_owner["released"] = True  # as if it had been silent for long
    store.put(layout.lease("s", 1), json.dumps(stale_owner).encode())
    with running(store, spool.parent / "other") as journal:
        assert journal.accepted == Accepted(2, frozenset({accepted.key}))
        old.append(epoch("t", 1))
        old.append({"kind": "failed", "trial": "t", "error": "of the stale owner"})
        old.flush()
        ignored = trial.save(2, {"state": b"2"}, {})
        journal.append({"kind": "finished", "trial": "t"})
        journal.flush()
        assert read_events(store, "s") == journal.events
        assert not journal.accepted(ignored.key)
        assert TrialCheckpoints(store, "s", "t", journal.accepted).latest() == accepted
    with running(store, spool.parent / "other") as journal:
        ends = [event for event in journal.events if event["kind"] in ("failed", "finished")]
        assert kinds(ends) == ["finished"]
        assert journal.accepted.manifests == {accepted.key}
    stale.lost.wait(0)
    old.close()


class WorstMoment(FolderStore):
    """Between the last check and a put, somebody else takes the study over and goes on with it."""

    def __init__(self, root: Path, part: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self._part, self._meanwhile = part, [meanwhile]

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        if self._part in key and self._meanwhile:
            self._meanwhile.pop()()
        super().put(key, data, if_absent=if_absent)


@pytest.mark.parametrize("part", ["journal/000001-000001", "manifest.json", "lease/000001"])
def test_an_owner_woken_at_the_worst_moment_changes_nothing(
    store: Store, spool: Path, part: str
) -> None:
    """Of whatever it was about to put: a segment, the manifest of a checkpoint, its lease."""
    elsewhere, seen = spool.parent / "other", []

    def look() -> tuple[object, ...]:
        view, owner = JournalReader(store, "s").view(), read_owner(store, "s")
        latest = TrialCheckpoints(store, "s", "t", view.accepted).latest()
        return view.events, view.segments, view.accepted, latest, owner

    def take_over() -> None:
        silent = Lease.acquire(store, "s", heartbeat_seconds=60, expiry_seconds=0.2)
        with Journal.open(store, "s", silent, spool=elsewhere, flush_seconds=0.02) as journal:
            trial = TrialCheckpoints(store, "s", "t", journal.accepted)
            trial.save(3, {"state": b"3"}, {})
            journal.append({"kind": "finished", "trial": "t"})
        silent.release()
        seen.append(look())

    stopping = WorstMoment(spool.parent / "store", part, lambda: None)
    lease = Lease.acquire(stopping, "s", heartbeat_seconds=60)
    journal = Journal.open(stopping, "s", lease, spool=spool, flush_seconds=0.02)
    trial = TrialCheckpoints(stopping, "s", "t", journal.accepted)
    trial.save(1, {"state": b"1"}, {})
    stopping._meanwhile = [take_over]
    journal.append(planned("t"))
    wait_for(lambda: journal.behind == 0)
    trial.save(2, {"state": b"2"}, {})
    if "lease" in part:
        lease.confirm()  # this is the put that takes so long
    with pytest.raises(LeaseLost, match="lost lease epoch 1 < 2"):
        lease.confirm()
    journal.close()
    lease.release()
    assert [look()] == seen


def test_an_owner_that_lost_its_lease_stops(store: Store, spool: Path) -> None:
    lease = Lease.acquire(store, "s", heartbeat_seconds=0.05)
    journal = Journal.open(store, "s", lease, spool=spool)
    owner = json.loads(store.get(layout.lease("s", 1)))
    store.put(layout.lease("s", 2), json.dumps({**owner, "epoch": 2, "token": "x"}).encode())
    assert lease.lost.wait(5)
    with pytest.raises(LeaseLost, match="lost lease epoch 1"):
        journal.append(planned("t"))
    with pytest.raises(LeaseLost):
        journal.flush()
    journal.close()


def test_two_writers_of_one_epoch_do_not_mix(store: Store, spool: Path) -> None:
    lease = Lease.acquire(store, "s")
    with Journal.open(store, "s", lease, spool=spool, flush_seconds=0.02) as journal:
        with pytest.raises(LeaseLost):
            Journal.open(store, "s", lease, spool=spool)
        foreign = store.get(layout.segment("s", 1, 0)).replace(lease.token.encode(), b"twin")
        store.put(layout.segment("s", 1, 1), foreign)
        journal.append(planned("t"))
        with pytest.raises(LeaseLost, match="of another writer"):
            journal.flush(10)
    assert kinds(read_events(store, "s")) == ["takeover"]


EPOCHS = [
    {"epoch": 1, "epochs": 2, "metrics": {"val/loss": 1.0}, "scales": {}, "seconds": {}},
    {"epoch": 2, "epochs": 2, "metrics": {"val/loss": 0.5}, "scales": {}, "seconds": {}},
]


@pytest.mark.parametrize("known", [0, 1, 2, 3])
@pytest.mark.parametrize("final", [False, True])
def test_a_lost_tail_comes_back_from_manifests(
    store: Store, spool: Path, known: int, final: bool
) -> None:
    meta = {"planned": planned("t"), "epochs": EPOCHS, "final": final}
    with running(store, spool) as journal:
        for event in [planned("t"), epoch("t", 1), epoch("t", 2)][:known]:
            journal.append(event)
        trial = TrialCheckpoints(store, "s", "t", journal.accepted)
        trial.save(1, {"state": b"1"}, {"planned": planned("t"), "epochs": EPOCHS[:1]})
        manifest = trial.save(2, {"state": b"2"}, meta)
        without_plan = TrialCheckpoints(store, "s", "u", journal.accepted)
        without_plan.save(1, {"state": b"1"}, {"epochs": EPOCHS[:1]})
    with running(store, spool) as journal:
        found = journal.record.trials["t"]
        assert list(journal.record.trials) == ["t"]
        assert [entry.epoch for entry in found.epochs] == [1, 2]
        assert found.checkpoints == {2: manifest.key}
        assert found.status == ("finished" if final else "running")
        assert journal.record.rebuilt == 3 - known + 1 + final
        again = journal.events
    with running(store, spool) as journal:
        assert journal.events[:-1] == again


def test_damaged_newer_and_missing_segments(store: Store, spool: Path) -> None:
    with running(store, spool) as journal:
        journal.append(planned("t"))
        journal.flush()
        journal.append({"kind": "finished", "trial": "t"})
    key = layout.segment("s", 1, 1)
    content = store.get(key)
    store.put(key, content.replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(Damaged, match=key):
        read_events(store, "s")
    store.put(key, content.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(StorageError, match=r"format 2.*upgrade"), running(store, spool):
        pass
    store.delete(key)
    with running(store, spool) as journal:
        assert kinds(journal.events) == ["takeover", "gap", "finished", "takeover"]
    with running(store, spool) as journal:
        assert kinds(journal.events)[:4] == ["takeover", "finished", "takeover", "takeover"]

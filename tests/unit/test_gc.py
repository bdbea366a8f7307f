"""`orchestrator gc`: what goes, what stays, and that nothing goes beside a study."""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli import main
from orchestrator.conduct import study
from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import blobs, collector, layout, process
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.collector import alone, newest_epochs, wait_until_free
from orchestrator.storage.garbage import (
    DAY_SECONDS,
    Garbage,
    Inventory,
    collect,
    garbage,
    inventory,
)
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.lease import Lease, LeaseLost, Owner, StudyIsOwned, read_owner
from orchestrator.storage.unfinished import Unfinished
from orchestrator.storage.uri import Entry, Store
from tests.unit.memory_store import Killed, MemoryStore
from tests.unit.study_setup import experiment

pytestmark = pytest.mark.slow

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def save(store: Store, step: int, *digests: str, study: str = "s", epoch: int = 1) -> str:
    """A checkpoint that names these blobs; the key of its manifest."""
    trial = TrialCheckpoints(store, study, "t", Accepted(epoch))
    meta = {"inputs": {"auxiliaries": {n: {"sha256": one} for n, one in enumerate(digests)}}}
    return trial.save(step, {"state.safetensors": b"state"}, meta).key


def a_lived_in(store: Store) -> dict[str, str]:
    """A store with a blob for each kind of reference, and two that nobody refers to."""
    sha = {
        name: blobs.put(store, name.encode())
        for name in ("manifest", "pretrained", "plan", "experiment", "old", "young")
    }
    save(store, 1, sha["manifest"])
    record = {"format": 1, "sha256": sha["pretrained"], "seconds": 1.0, "metrics": {}}
    store.put(layout.pretrained("f"), json.dumps(record).encode())
    store.put(layout.plan("s"), json.dumps({"weights": sha["plan"]}).encode())
    text = f"auxiliaries: {{audio: {{weights: w.pt, sha256: {sha['experiment']}}}}}\n"
    store.put(layout.experiment("s"), text.encode())
    lines = json.dumps({"sha256": sha["old"]}).encode()
    store.put(layout.segment("s", 1, 0), lines)  # what only the record tells of is not needed
    half = f"{layout.checkpoint('s', ManifestKey('t', 1, 2))}/state-0.safetensors"
    store.put(half, b"half")
    store.put(half.replace("000001-", "000002-"), b"of the newest owner")
    Lease.acquire(store, "s").release()  # under epoch 2: there is a segment of the first
    return sha


def age(folder: Path, *, hours: float) -> None:
    """Everything there was written so long ago."""
    then = time.time() - 3600 * hours
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def gc(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["gc", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def files(folder: Path) -> set[str]:
    """All files there but for the collector's own lease, and what a heartbeat is writing."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    passing = (f"/{layout.COLLECTOR}/", "/lease/.tmp-")
    return {path for path in found if not any(part in path for part in passing)}


# -- what is garbage ----------------------------------------------------------------------------


def entry(key: str, modified: float = 0.0) -> Entry:
    return Entry(key, 10, modified)


def place(epoch: int, step: int, name: str, study: str = "s") -> str:
    return f"{layout.checkpoint(study, ManifestKey('t', epoch, step))}/{name}"


def test_what_is_garbage() -> None:
    states = [
        entry(place(1, 1, "manifest.json")),
        entry(place(1, 1, "state-1.safetensors")),
        entry(place(1, 2, "state-2.safetensors")),  # left behind
        entry(place(1, 3, "state-3.safetensors"), 95.0),  # young
        entry(place(2, 3, "state-4.safetensors")),  # of the newest owner
        entry(place(1, 2, "state-5.safetensors", "never-owned")),
    ]
    found = Inventory(
        blobs=(entry(layout.blob(A)), entry(layout.blob(B)), entry(layout.blob(C), 95.0)),
        states=tuple(states),
        referred=frozenset({A, "d" * 64}),
        unfinished=(Unfinished("u", -DAY_SECONDS), Unfinished("v", 90.0 - DAY_SECONDS)),
        unfinished_told=True,
    )
    rubbish = garbage(found, {"s": 2}, now=100.0, grace_seconds=10.0)
    assert rubbish == Garbage(
        blobs=(entry(layout.blob(B)),),
        leftovers=(states[2],),
        unfinished=(Unfinished("u", -DAY_SECONDS), Unfinished("v", 90.0 - DAY_SECONDS)),
        in_use=1,
        young=2,
    )
    assert rubbish.bytes == 20
    later = garbage(found, {"s": 2}, now=99.0, grace_seconds=2 * DAY_SECONDS)
    assert (later.blobs, later.leftovers, later.unfinished, later.young) == ((), (), (), 6)


@settings(max_examples=40)
@given(
    st.sets(st.sampled_from([A, B, C])),
    st.sets(st.sampled_from([A, B, C])),
    st.dictionaries(st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans()),
    st.integers(0, 4),
)
def test_nothing_that_counts_is_garbage(
    there: set[str], referred: set[str], folders: dict[tuple[int, int], bool], newest: int
) -> None:
    states = [entry(place(*at, "state-1.safetensors")) for at in folders]
    states += [entry(place(*at, "manifest.json")) for at, complete in folders.items() if complete]
    found = Inventory(
        tuple(entry(layout.blob(one)) for one in there),
        tuple(states), frozenset(referred), (), unfinished_told=True,
    )  # fmt: skip
    rubbish = garbage(found, {"s": newest}, now=1.0, grace_seconds=0.0)
    assert {layout.parse_blob(one.key) for one in rubbish.blobs} == there - referred
    gone = {(at.epoch, at.step) for e in rubbish.leftovers if (at := layout.checkpoint_of(e.key))}
    assert gone == {at for at, complete in folders.items() if not complete and at[0] < newest}


# -- the verb -----------------------------------------------------------------------------------


def test_it_shows_first_and_deletes_with_yes(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sha, folder = a_lived_in(store), tmp_path / "store"
    age(folder, hours=25)
    blobs.put(store, b"another that is young")
    temporary = folder / "blobs" / ".tmp-0123456789abcdef"
    temporary.write_bytes(b"begun")
    (folder / "blobs" / "notes.txt").write_text("of somebody else")
    age(folder / "blobs" / "sha256" / sha["young"][:2], hours=23)
    os.utime(temporary, (0, 0))
    before = files(folder)
    for arguments in ((), ("--dry-run",)):
        shown = gc(capsys, folder, *arguments)
        assert files(folder) == before
        assert not shown["deleted"]
    assert [one["key"] for one in shown["blobs"]] == [layout.blob(sha["old"])]
    assert (shown["in_use"], shown["young"]) == (4, 2)
    assert main(["gc", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "3 objects, 12 B, would be deleted; 4 blobs in use; 2 too young" in said
    assert layout.blob(sha["old"]) in said
    assert "nothing was deleted: --yes does it" in said
    done = gc(capsys, folder, "--yes")
    assert {**done, "deleted": False} == shown
    gone = [one["key"] for kind in ("blobs", "leftovers", "unfinished") for one in done[kind]]
    assert before - files(folder) == set(gone)
    assert len(gone) == 3
    again = gc(capsys, folder, "--yes")
    assert (again["blobs"], again["leftovers"], again["unfinished"]) == ([], [], [])
    assert len(gc(capsys, folder, "--yes", "--grace", "0")["blobs"]) == 2


def test_a_study_that_runs_refuses_it_and_is_named(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_lived_in(store)
    age(tmp_path / "store", hours=25)
    with Lease.acquire(store, "s", heartbeat_seconds=0.05):
        before = files(tmp_path / "store")
        assert main(["gc", str(tmp_path / "store"), "--yes"]) == 2
        told = capsys.readouterr().err
        who = f"process {process.own_pid()} on {process.host()}, since 2"
        assert "nothing was deleted: study 's' is already running: " + who in told
        assert gc(capsys, tmp_path / "store")["running"]["s"].startswith(who)
        assert files(tmp_path / "store") == before
    assert len(gc(capsys, tmp_path / "store", "--yes")["blobs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "STORAGE nowhere: neither studies nor blobs lie there"),
        (["nowhere", "--yes"], "neither studies nor blobs"),
        ([""], "storage is empty"),
        (["s3://KEY:hunter2@bucket/x", "--yes"], "carries no key"),
        (["store", "--grace", "-1"], "--grace -1: a number of hours, 0 or more"),
        (["store", "--grace", "nan"], "--grace nan"),
        (["store", "--grace", "soon"], "--grace soon"),
        (["store", "--yes", "--dry-run"], "not allowed with"),
        ([], "STORAGE"),
    ],
)
def test_wrong_requests_are_refused(
    arguments: list[str],
    told: str,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    blobs.put(store, b"x")
    before = files(tmp_path)
    assert main(["gc", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert "hunter2" not in said.err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"format": 2, "files": {}}', "format 2.*upgrade"),
        (b"not json", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_nothing_goes_while_it_is_not_known_what_is_needed(
    content: bytes, told: str, store: Store
) -> None:
    for key in (save(store, 1), layout.pretrained("f")):
        store.put(key, content)
        with pytest.raises(StorageError, match=told) as refused:
            inventory(store)
        assert key in str(refused.value)
        store.delete(key)
    assert inventory(store).referred == frozenset()


# -- beside others ------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases beat and expire in moments."""

    def acquire(store: Store, study: str) -> Lease:
        return original(store, study, heartbeat_seconds=0.02, expiry_seconds=0.3)

    original = Lease.acquire
    monkeypatch.setattr(collector, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(Lease, "acquire", acquire)


def silent(store: Store, study: str) -> Owner:
    """An owner on a machine that cannot be looked into, who does nothing."""
    owner = Owner(7, "token", "far", "another boot", 1, 1.0, time.time())
    content = json.dumps({"format": 1, **asdict(owner)}).encode()
    store.put(layout.lease(study, owner.epoch), content)
    return owner


def test_a_study_that_begins_meanwhile_waits(store: Store, quick: None) -> None:
    told: list[str] = []
    held = threading.Event()

    def begin() -> None:
        with Lease.acquire(store, "new"):
            wait_until_free(store, told.append)
            held.set()

    study = threading.Thread(target=begin)
    with alone(store):
        study.start()
        assert not held.wait(0.3)
    study.join(10)
    assert held.is_set()
    assert len(told) == 1
    assert "orchestrator gc" in told[0]


def test_a_study_looks_for_a_collector_once_it_has_its_lease_and_before_all_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(f"storage={store.uri}")
    seen: list[Owner | None] = []

    def look(store: Store, tell: object) -> None:
        seen.append(read_owner(store, asked.name))
        raise RequestError("one is at work")

    monkeypatch.setattr(study, "wait_until_free", look)
    view: Any = SimpleNamespace(phase=str)
    with pytest.raises(RequestError, match="one is at work"), ExitStack() as stack:
        study._Run.enter(stack, store, asked, view)
    (owner,) = seen
    assert owner is not None
    assert not owner.released
    assert [entry.key for entry in store.list()] == [layout.lease(asked.name, 1)]


def test_a_study_does_not_wait_for_ever(store: Store, quick: None) -> None:
    with alone(store), pytest.raises(RequestError, match="at work there, as process"):
        wait_until_free(store, str, patience_seconds=0.05)


def test_two_collectors_are_not_at_work_at_once(store: Store, quick: None) -> None:
    with (
        alone(store),
        pytest.raises(RequestError, match=r"`orchestrator gc` is at work there, as process \d+"),
        alone(store),
    ):
        raise AssertionError("there are two")


@pytest.mark.parametrize("first", ["study", "collector"])
def test_of_a_study_and_a_collector_one_sees_the_other(
    first: str, store: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes in the middle of the other's beginning, where it has not looked around yet."""
    happened: list[str] = []

    def collector_comes() -> None:
        with pytest.raises(StudyIsOwned), alone(store):
            happened.append("collected")

    if first == "study":
        with Lease.acquire(store, "new"):
            collector_comes()
            wait_until_free(store, str)
        assert happened == []
        return
    begun: list[Lease] = []
    look = collector.newest_epochs

    def after_its_lease(entries: Any) -> dict[str, int]:
        begun.append(Lease.acquire(store, "new"))
        with pytest.raises(RequestError, match="at work"):
            wait_until_free(store, str, patience_seconds=0.0)
        return look(store.list(layout.STUDIES))

    monkeypatch.setattr(collector, "newest_epochs", after_its_lease)
    collector_comes()
    begun[0].release()
    assert happened == []


@pytest.mark.parametrize("number", range(30))
def test_a_study_and_a_collector_race(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes first, what a study relies on is there when it has said that it needs it."""
    monkeypatch.setattr(collector, "_POLL_SECONDS", 0.01)
    store = MemoryStore(pause_seconds=0.004)
    sha256 = blobs.put(store, b"weights that an older study left behind")
    errors: list[BaseException] = []

    def acquire(name: str) -> Lease:
        return original(store, name, heartbeat_seconds=0.02, expiry_seconds=5.0)

    def study() -> None:
        time.sleep(0.002 * (number % 8))
        try:
            with Lease.acquire(store, "new"):
                wait_until_free(store, str)
                assert blobs.put(store, b"weights that an older study left behind") == sha256
                time.sleep(0.02)
                save(store, 1, sha256, study="new")
            assert store.exists(layout.blob(sha256))
        except BaseException as error:
            errors.append(error)

    original = Lease.acquire
    monkeypatch.setattr(Lease, "acquire", lambda store, name: acquire(name))
    beginning = threading.Thread(target=study)
    beginning.start()
    with suppress(StudyIsOwned), alone(store) as here:
        rubbish = garbage(inventory(store), here.epochs, now=1.0, grace_seconds=0.0)
        collect(store, rubbish, here.confirm)
    beginning.join(30)
    assert errors == []
    assert store.exists(layout.blob(sha256))


def test_an_owner_that_is_silent_is_followed_and_loses_its_study(store: Store, quick: None) -> None:
    silent(store, "s")
    with alone(store) as here:
        assert here.epochs == {"s": 7}
        with pytest.raises(StudyIsOwned):
            Lease.acquire(store, "s")
    with Lease.acquire(store, "s") as lease:
        assert lease.epoch == 9


def test_a_collector_that_was_replaced_deletes_nothing_more(store: Store, quick: None) -> None:
    blobs.put(store, b"x")
    with alone(store) as here:
        here.confirm()
        owner = Owner(9, "another", "far", "another boot", 1, 1.0, time.time())
        content = json.dumps({"format": 1, **asdict(owner)}).encode()
        store.put(layout.lease(layout.COLLECTOR, 9), content)
        rubbish = garbage(inventory(store), {}, now=time.time() + 9, grace_seconds=0)
        assert len(rubbish.blobs) == 1
        assert here.lease.lost.wait(10)
        with pytest.raises(LeaseLost):
            collect(store, rubbish, here.confirm)
    assert store.exists(rubbish.blobs[0].key)


def test_a_dead_collector_is_followed_by_the_study_that_finds_it(store: Store, quick: None) -> None:
    silent(store, layout.COLLECTOR)
    with Lease.acquire(store, "s"):
        wait_until_free(store, str)
    with alone(store) as here:
        assert here.lease.epoch == 9


def test_the_leases_of_collectors_are_no_study(store: Store) -> None:
    with alone(store):
        assert newest_epochs(store.list(layout.STUDIES)) == {}
    assert layout.study_of(layout.leases(layout.COLLECTOR) + "/000001.json") is None


def interrupted(number: int) -> Callable[[], None]:
    """Raises when it is asked the `number`-th time."""
    asked = iter(range(number))

    def confirm() -> None:
        if next(asked, None) is None:
            raise Killed

    return confirm


def test_a_kill_at_any_delete_leaves_what_counts() -> None:
    def made() -> tuple[MemoryStore, Garbage]:
        store = MemoryStore()
        sha = a_lived_in(store)
        for step in (3, 4):
            store.delete(save(store, step, sha["manifest"]))
        return store, garbage(inventory(store), {"s": 2}, now=1.0, grace_seconds=0.0)

    for cut in range(5):
        store, rubbish = made()
        gone = {one.key for one in (*rubbish.blobs, *rubbish.leftovers)}
        kept = store.objects.keys() - gone
        assert len(gone) == 5
        with pytest.raises(Killed):
            collect(store, rubbish, interrupted(cut))
        assert store.objects.keys() >= kept
        left = garbage(inventory(store), {"s": 2}, now=1.0, grace_seconds=0.0)
        collect(store, left, lambda: None)
        assert store.objects.keys() == kept

"""What every store has to keep, on a folder and on a real S3 server."""

import json
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints, read_manifest
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.lease import Lease, StudyIsOwned
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import AlreadyThere, Damaged, Entry, Missing, Store
from orchestrator.study.retention import TrialRetention
from orchestrator.tracking.journal import Journal, read_events
from tests.swift import Swift

Change = Callable[[bytes], bytes]


@dataclass
class Place:
    """A store, and a way around it."""

    store: Store
    folder: Path
    """A folder, and for a folder store the one that it lies in."""
    server: Swift | None = None

    def alter(self, key: str, change: Change) -> None:
        """Do to an object what a bad disk or a careless person does."""
        if self.server is None:
            path = self.folder / "store" / key
            path.write_bytes(change(path.read_bytes()))
            return
        assert isinstance(self.store, S3Store)
        client, bucket = self.server.client(), self.store.bucket
        where = {"Bucket": bucket.name, "Key": f"{bucket.prefix}/{key}"}
        found = client.get_object(**where)
        content = change(found["Body"].read())
        client.put_object(**where, Body=content, Metadata=found["Metadata"])


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(Store.open(str(tmp_path / "store")), tmp_path)
    return Place(
        Store.open(request.getfixturevalue("s3")), tmp_path, request.getfixturevalue("swift")
    )


@pytest.fixture
def store(place: Place) -> Store:
    return place.store


def _cut(content: bytes) -> bytes:
    return content[:-1]


def _flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def test_a_store_keeps_what_was_put(store: Store, tmp_path: Path) -> None:
    assert store.list() == []
    store.put("a/b.json", b"one")
    store.put("a/c", b"")
    (tmp_path / "file").write_bytes(b"three")
    store.put("d", tmp_path / "file")
    store.put("a/b.json", b"other")
    assert store.get("a/b.json") == b"other"
    assert store.get("a/c") == b""
    assert store.list() == [Entry("a/b.json", 5), Entry("a/c", 0), Entry("d", 5)]
    assert store.list("a") == [Entry("a/b.json", 5), Entry("a/c", 0)]
    assert store.list("nothing/here") == []
    assert store.size("a/c") == 0
    assert store.size("a") is None
    assert store.exists("d")
    assert store.sub("a").get("b.json") == b"other"
    assert store.sub("a").list() == [Entry("b.json", 5), Entry("c", 0)]
    assert Store.open(store.uri).get("d") == b"three"
    assert pickle.loads(pickle.dumps(store)).get("d") == b"three"
    local = store.local_path("d")
    assert local is None or local.read_bytes() == b"three"
    store.delete("a/c")
    store.delete("a/c")
    store.delete("a/b.json")
    assert store.list() == [Entry("d", 5)]
    with pytest.raises(Missing, match="a/c"):
        store.get("a/c")
    with pytest.raises(StorageError, match="cannot write"):
        store.put("d", tmp_path / "nothing")


def test_odd_names_come_back_as_they_were(store: Store) -> None:
    names = [
        "a b",
        "a+b",
        "a%20b",
        "ä/ö",
        "x=1&y=2",
        "what?",
        "no#1",
        "it's",
        '"q"',
        "~.",
        "😀",
        "<>",
    ]
    for name in names:
        store.put(f"odd/{name}", name.encode())
    assert [entry.key for entry in store.list("odd")] == sorted(f"odd/{name}" for name in names)
    assert [store.get(f"odd/{name}").decode() for name in names] == names
    for name in names:
        store.delete(f"odd/{name}")
    assert store.list() == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a\\b", "a\n", "a/.tmp-1", "x" * 901]
)
def test_keys_stay_below_the_prefix(tmp_path: Path, key: str) -> None:
    for store in (Store.open(str(tmp_path)), Store.open("s3://bucket/prefix")):
        with pytest.raises(StorageError, match="a storage key is"):
            store.put(key, b"")


def test_a_conditional_put_has_one_winner_once_it_has_settled(store: Store) -> None:
    won: dict[str, list[int]] = {f"k/{number}": [] for number in range(8)}

    def claim(who: int) -> None:
        for key, winners in won.items():
            start.wait()
            with suppress(AlreadyThere):
                store.put(key, b"%d" % who, if_absent=True)
                winners.append(who)

    start = threading.Barrier(4)
    threads = [threading.Thread(target=claim, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(store.settle_seconds)
    for key, winners in won.items():
        assert int(store.get(key)) in winners
        assert len(winners) == 1 or isinstance(store, S3Store)
        with pytest.raises(AlreadyThere, match=key):
            store.put(key, b"late", if_absent=True)


def test_a_study_has_one_owner_and_its_journal_goes_on(store: Store, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with Lease.acquire(store, "s", heartbeat_seconds=0.2, expiry_seconds=3) as lease:
        with pytest.raises(StudyIsOwned):
            Lease.acquire(store, "s", heartbeat_seconds=0.2, expiry_seconds=3)
        with Journal.open(store, "s", lease, spool=spool) as journal:
            journal.append({"kind": "study_started", "experiment": {}, "experiment_sha256": "0"})
            assert journal.flush(30)
    with (
        Lease.acquire(store, "s", heartbeat_seconds=0.2, expiry_seconds=3) as lease,
        Journal.open(store, "s", lease, spool=spool) as journal,
    ):
        assert lease.epoch == 2
        journal.append({"kind": "study_finished", "verdict": ""})
    kinds = [event["kind"] for event in read_events(store, "s")]
    assert kinds == ["takeover", "study_started", "takeover", "study_finished"]


def test_blobs_are_written_once_and_mended(place: Place, tmp_path: Path) -> None:
    store, cache = place.store, tmp_path / "cache"
    sha256 = blobs.put(store, b"weights")
    (tmp_path / "file").write_bytes(b"weights")
    assert blobs.put(store, tmp_path / "file") == sha256
    assert blobs.fetch(store, sha256, cache).read_bytes() == b"weights"
    for path in cache.rglob(sha256):
        path.unlink()
    place.alter(layout.blob(sha256), _flip)
    with pytest.raises(Damaged, match=sha256):
        blobs.fetch(store, sha256, cache)
    assert blobs.put(store, b"weights") == sha256
    assert blobs.fetch(store, sha256, cache).read_bytes() == b"weights"
    with pytest.raises(Missing):
        blobs.fetch(store, "0" * 64, cache)


def checkpoints(store: Store, epoch: int = 1, *manifests: str) -> TrialCheckpoints:
    return TrialCheckpoints(store, "s", "t", Accepted(epoch, frozenset(manifests)))


FILES = {"state.safetensors": b"tensors", "notes.json": b"{}"}


def test_a_checkpoint_is_complete_with_its_manifest(store: Store) -> None:
    trial = checkpoints(store)
    assert trial.latest() is None
    assert trial.load_latest() is None
    manifest = trial.save(3, FILES, {"epochs": [{"epoch": 3}], "final": True})
    assert manifest == read_manifest(store, manifest.key)
    assert manifest.final
    assert (manifest.trial, manifest.epoch, manifest.step) == ("t", 1, 3)
    assert trial.latest() == manifest
    assert trial.load(manifest) == FILES
    assert pickle.loads(pickle.dumps(trial)).load_latest() == (manifest, FILES)
    store.delete(manifest.key)
    assert trial.latest() is None
    assert [entry.key for entry in store.list()]


def test_the_newest_is_by_step_then_epoch_and_only_accepted_ones_count(store: Store) -> None:
    first = checkpoints(store, 1).save(5, FILES, {})
    stale = checkpoints(store, 1).save(9, FILES, {})
    owner = checkpoints(store, 2, first.key)
    assert owner.latest() == first
    again = owner.save(5, {"state.safetensors": b"same step"}, {})
    assert owner.latest() == again
    assert owner.save(4, FILES, {}).step == 4
    assert owner.latest() == again
    assert stale.key not in owner.accepted.manifests


def test_a_step_that_stands_is_not_written_again(store: Store) -> None:
    trial = checkpoints(store)
    first = trial.save(1, FILES, {"by": "first"})
    assert trial.save(1, {"state.safetensors": b"a stale twin"}, {"by": "twin"}) == first
    assert trial.load(first) == FILES


@pytest.mark.parametrize("damage", [_cut, _flip, None])
@pytest.mark.parametrize("part", ["state", "manifest"])
def test_damage_falls_back_to_the_checkpoint_before(
    place: Place, damage: Change | None, part: str
) -> None:
    trial = checkpoints(place.store)
    before = trial.save(1, FILES, {})
    newest = trial.save(2, FILES, {})
    key = newest.key if part == "manifest" else newest.files["state.safetensors"].key
    if damage is None:
        place.store.delete(key)
    else:
        place.alter(key, damage)
    assert trial.load_latest() == (before, FILES)
    if damage is not _flip or part == "manifest":
        assert trial.latest() == before
    else:
        with pytest.raises(Damaged, match="is damaged"):
            trial.load(newest)
    again = trial.save(2, FILES, {})
    assert (again.key, again.step) == (newest.key, 2)
    assert trial.load_latest() == (again, FILES)


def test_newer_manifests_are_refused(store: Store) -> None:
    key = layout.manifest("s", ManifestKey("t", 1, 1))
    store.put(key, json.dumps({"format": 2}).encode())
    with pytest.raises(StorageError, match=r"format 2.*upgrade"):
        checkpoints(store).latest()


def test_prune_deletes_older_ones_once_a_newer_one_stands(place: Place) -> None:
    store, old = place.store, checkpoints(place.store, 1)
    first, stale = old.save(1, FILES, {}), old.save(7, FILES, {})
    owner = checkpoints(store, 2, first.key)
    assert owner.prune()
    assert not store.exists(stale.key)
    second = owner.save(2, FILES, {})
    assert owner.prune(TrialRetention(last=3)) == []
    third = owner.save(3, FILES, {})
    half = layout.checkpoint("s", ManifestKey("t", 2, 4)) + "/state-0.safetensors"
    newer = layout.checkpoint("s", ManifestKey("t", 3, 1)) + "/state-0.safetensors"
    store.put(half, b"under way")
    store.put(newer, b"of the next owner")
    deleted = owner.prune()
    assert first.key in deleted
    assert second.key in deleted
    assert owner.load_latest() == (third, FILES)
    keys = [entry.key for entry in store.list()]
    assert half in keys
    assert newer in keys
    assert len(keys) == 5
    place.alter(third.files["state.safetensors"].key, _flip)
    fourth = owner.save(4, FILES, {})
    place.alter(fourth.files["state.safetensors"].key, _cut)
    assert third.key not in owner.prune()


@pytest.mark.slow
def test_a_listing_of_many_pages_is_whole_and_sorted(s3: str, swift: Swift) -> None:
    store = Store.open(s3)
    assert isinstance(store, S3Store)
    keys = [f"p/{number:02d}" for number in range(10)]
    for key in reversed(keys):
        store.put(key, b"x")
    swift.client().put_object(Bucket=store.bucket.name, Key=f"{store.bucket.prefix}/p/", Body=b"")
    assert [entry.key for entry in replace(store, page_size=3).list()] == keys

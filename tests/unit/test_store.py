"""Folder stores, blobs and checkpoints."""

import json
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints, read_manifest
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.uri import AlreadyThere, Damaged, Entry, Missing, Store


class FarStore(FolderStore):
    """A store that is not on this machine's disk; it counts reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.log = root.parent / "reads"

    def local_path(self, key: str) -> Path | None:
        return None

    def chunks(self, key: str) -> Iterator[bytes]:
        with self.log.open("a") as file:
            file.write(f"{key}\n")
        return super().chunks(key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def test_a_store_keeps_what_was_put(store: Store, tmp_path: Path) -> None:
    assert store.list() == []
    store.put("a/b.json", b"one")
    store.put("a/c", b"")
    (tmp_path / "file").write_bytes(b"three")
    store.put("d", tmp_path / "file")
    store.put("a/b.json", b"other")
    assert store.get("a/b.json") == b"other"
    assert store.list() == [Entry("a/b.json", 5), Entry("a/c", 0), Entry("d", 5)]
    assert store.list("a") == [Entry("a/b.json", 5), Entry("a/c", 0)]
    assert store.list("nothing/here") == []
    assert store.size("a/c") == 0
    assert store.size("a") is None
    assert store.exists("d")
    assert store.sub("a").get("b.json") == b"other"
    assert Store.open(store.uri).get("d") == b"three"
    assert pickle.loads(pickle.dumps(store)).get("d") == b"three"
    path = store.local_path("d")
    assert path is not None
    assert path.read_bytes() == b"three"
    store.delete("a/c")
    store.delete("a/c")
    store.delete("a/b.json")
    assert store.list() == [Entry("d", 5)]
    with pytest.raises(Missing, match="a/c"):
        store.get("a/c")
    assert not [path for path in (tmp_path / "store").iterdir() if path.name != "d"]


def _claim(store: Store, key: str, who: int, start: threading.Barrier, won: list[int]) -> None:
    start.wait()
    with suppress(AlreadyThere):
        store.put(key, b"%d" % who, if_absent=True)
        won.append(who)


def test_a_conditional_put_has_one_winner(store: Store) -> None:
    for number in range(20):
        won: list[int] = []
        start = threading.Barrier(4)

        threads = [
            threading.Thread(target=_claim, args=(store, f"k/{number}", who, start, won))
            for who in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get(f"k/{number}") == b"%d" % won[0]


def test_put_and_delete_of_the_same_folder_do_not_hinder_each_other(store: Store) -> None:
    def churn(name: str) -> None:
        for _ in range(60):
            store.put(f"f/g/{name}", b"x")
            store.delete(f"f/g/{name}")

    threads = [threading.Thread(target=churn, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.put("f/g/end", b"x")
    assert store.list() == [Entry("f/g/end", 1)]


def test_half_written_files_are_not_objects(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"x")
    (tmp_path / "store" / "a" / ".tmp-123").write_bytes(b"half")
    assert store.list() == [Entry("a/b", 1)]


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a\\b", "a\n", "a/.tmp-1", "x" * 901]
)
def test_keys_stay_below_the_prefix(store: Store, key: str) -> None:
    with pytest.raises(StorageError, match="a storage key is"):
        store.put(key, b"")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://bucket/prefix", "release 0.2"),
        ("s3://KEY:SECRET@bucket/prefix", "release 0.2"),
        ("s3:/bucket", "plain path"),
        ("file:relative", "plain path"),
        ("file://host/share", "absolute path"),
        ("gs://bucket", "file://"),
        (" ", "empty"),
    ],
)
def test_other_addresses_are_refused(uri: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        Store.open(uri)
    assert "SECRET" not in str(refused.value)


def test_addresses_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open("./a b").uri == (tmp_path / "a b").as_uri()
    assert Store.open((tmp_path / "a b").as_uri()).uri == (tmp_path / "a b").as_uri()


def test_what_the_system_says_is_explained(store: Store, tmp_path: Path) -> None:
    store.put("a", b"x")
    with pytest.raises(StorageError, match=r"a/b.*in each other's way"):
        store.put("a/b", b"x")


def test_a_store_that_cannot_take_a_put_keeps_the_old_object(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    store.put("a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="free some space"):
            store.put("a", b"new")
    assert store.get("a") == b"old"


def test_blobs_are_written_once_and_mended(store: Store, tmp_path: Path) -> None:
    sha256 = blobs.put(store, b"weights")
    (tmp_path / "file").write_bytes(b"weights")
    assert blobs.put(store, tmp_path / "file") == sha256
    path = blobs.fetch(store, sha256, tmp_path / "cache")
    assert path.read_bytes() == b"weights"
    path.write_bytes(b"wEights")
    with pytest.raises(Damaged, match=sha256):
        blobs.fetch(store, sha256, tmp_path / "cache")
    assert blobs.put(store, b"weights") == sha256
    assert blobs.fetch(store, sha256, tmp_path / "cache").read_bytes() == b"weights"
    with pytest.raises(Missing):
        blobs.fetch(store, "0" * 64, tmp_path / "cache")


def _fetch(root: Path, sha256: str, cache: Path) -> None:
    blobs.fetch(FarStore(root), sha256, cache)


def test_a_blob_is_fetched_once_per_machine(tmp_path: Path) -> None:
    store = FarStore(tmp_path / "store")
    sha256 = blobs.put(store, b"w" * 9_000_000)
    store.log.unlink()
    arguments = (tmp_path / "store", sha256, tmp_path / "cache")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_fetch, args=arguments) for _ in range(4)]
    threads = [threading.Thread(target=_fetch, args=arguments) for _ in range(4)]
    for worker in processes + threads:
        worker.start()
    for worker in processes + threads:
        worker.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert store.log.read_text().splitlines() == [layout.blob(sha256)]
    path = blobs.fetch(store, sha256, tmp_path / "cache")
    path.write_bytes(b"torn")
    assert blobs.fetch(store, sha256, tmp_path / "cache").read_bytes() == b"w" * 9_000_000
    (tmp_path / "store" / layout.blob(sha256)).write_bytes(b"worse")
    path.unlink()
    with pytest.raises(Damaged):
        blobs.fetch(store, sha256, tmp_path / "cache")
    assert not path.exists()


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


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize("part", ["state", "manifest"])
def test_damage_falls_back_to_the_checkpoint_before(
    store: Store, tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    trial = checkpoints(store)
    before = trial.save(1, FILES, {})
    newest = trial.save(2, FILES, {})
    key = newest.key if part == "manifest" else newest.files["state.safetensors"].key
    damage(tmp_path / "store" / key)
    assert trial.load_latest() == (before, FILES)
    if damage is not _flip or part == "manifest":
        assert trial.latest() == before
    else:
        with pytest.raises(Damaged, match=key):
            trial.load(newest)
    if damage is not _flip:
        assert trial.save(2, FILES, {}) == newest
        assert trial.load_latest() == (newest, FILES)


def test_newer_manifests_are_refused(store: Store) -> None:
    key = layout.manifest("s", ManifestKey("t", 1, 1))
    store.put(key, json.dumps({"format": 2}).encode())
    with pytest.raises(StorageError, match=r"format 2.*upgrade"):
        checkpoints(store).latest()


def test_prune_deletes_older_ones_once_a_newer_one_stands(store: Store, tmp_path: Path) -> None:
    old = checkpoints(store, 1)
    first, stale = old.save(1, FILES, {}), old.save(7, FILES, {})
    owner = checkpoints(store, 2, first.key)
    assert owner.prune()
    assert not store.exists(stale.key)
    second = owner.save(2, FILES, {})
    assert owner.prune(keep=3) == []
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
    _flip(tmp_path / "store" / third.files["state.safetensors"].key)
    fourth = owner.save(4, FILES, {})
    _cut(tmp_path / "store" / fourth.files["state.safetensors"].key)
    assert third.key not in owner.prune()

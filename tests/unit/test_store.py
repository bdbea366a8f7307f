"""Folder stores, the cache of blobs, addresses; see contract/test_store.py for all stores."""

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import blobs, layout
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.uri import Damaged, Entry, Store


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
    ("uri", "says"),
    [
        ("s3://KEY:SECRET@bucket/prefix", "AWS_SECRET_ACCESS_KEY"),
        ("s3://KEY:SEC/RET@bucket/prefix", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/prefix?secret_key=SECRET", "no options"),
        ("s3:/bucket", "s3://bucket/prefix"),
        ("s3://", "3 to 63"),
        ("s3://Bucket_A/prefix", "lower-case"),
        ("s3://bucket/../prefix", "'..' parts"),
        ("s3://bucket//prefix", "empty"),
        ("file:relative", "plain path"),
        ("file://host/share", "absolute path"),
        ("gs://KEY:SECRET@bucket", "file://"),
        (" ", "empty"),
    ],
)
def test_other_addresses_are_refused(uri: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        Store.open(uri)
    assert "SEC" not in str(refused.value).replace("AWS_SECRET_ACCESS_KEY", "")


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


class AlteredOnce(FarStore):
    """The first reading gives other bytes."""

    reads = 0

    def chunks(self, key: str) -> Iterator[bytes]:
        self.reads += 1
        yield from [b"other"] if self.reads == 1 else super().chunks(key)


def test_what_was_altered_on_its_way_is_read_once_more(tmp_path: Path) -> None:
    store = AlteredOnce(tmp_path / "store")
    sha256 = blobs.put(Store.open(store.uri), b"weights")
    key = layout.blob(sha256)
    assert store.get_known(key, sha256) == b"weights"
    store.reads = 0
    with pytest.raises(Damaged, match=sha256):
        list(store.verified(key, sha256))
    store.reads = 0
    left = tmp_path / "cache" / sha256[:2] / f"{sha256}.1.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a process that was killed")
    assert blobs.fetch(store, sha256, tmp_path / "cache").read_bytes() == b"weights"
    assert not left.exists()
    with pytest.raises(Damaged, match="0000"):
        store.get_known(key, "0" * 64)


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

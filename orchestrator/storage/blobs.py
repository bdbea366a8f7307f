"""Content-addressed blobs: named by their sha256, written once, verified whenever they are read."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage import layout
from orchestrator.storage.uri import AlreadyThere, Damaged, Store

_CHUNK_BYTES = 4 * 1024 * 1024


def put(store: Store, data: bytes | Path) -> str:
    """Keep `data`, or the content of the file that it names, and return its sha256 in hex.

    A blob that is already there and sound is not written again; a damaged one is mended.
    Raises StorageError when what the store holds afterwards is not what was handed in.
    """
    sha256 = file_sha256(data) if isinstance(data, Path) else hashlib.sha256(data).hexdigest()
    key = layout.blob(sha256)
    if store.exists(key):
        if not _wrong(store, key, sha256):
            return sha256
        store.put_known(key, data, sha256)
    else:
        with suppress(AlreadyThere):  # somebody else wrote the same bytes meanwhile
            store.put_known(key, data, sha256, if_absent=True)
    if wrong := _wrong(store, key, sha256):
        raise StorageError(
            f"{wrong}: what was stored is not what was handed in; the file changed while it was"
            " read, or the store is faulty: try again"
        )
    return sha256


def fetch(store: Store, sha256: str, cache: Path) -> Path:
    """A file of this machine that holds the blob `sha256`; only to be read (mapped, for example).

    A store on this machine's disk gives its own file. Otherwise the blob is fetched into the
    folder `cache`, once for all processes of the machine. What is returned has been verified.
    Raises Missing, Damaged, or StorageError.
    """
    key = layout.blob(sha256)
    if (local := store.local_path(key)) is not None:
        _verify(local, sha256, f"{store.uri}/{key}")
        return local
    target = cache / sha256[:2] / sha256
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{sha256}.lock")):
        if not (target.is_file() and verified_sha256(target) == sha256):
            _download(store, key, target)
    return target


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hex. Raises StorageError naming the file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def verified_sha256(path: Path) -> str:
    """As file_sha256, but a file whose inode, size and time stand is not read a second time."""
    found = path.stat()
    return _known_sha256(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _known_sha256(path: Path, inode: int, size: int, modified_ns: int) -> str:
    del inode, size, modified_ns  # they are only here to be part of the cache's key
    return file_sha256(path)


def _verify(path: Path, sha256: str, shown: str) -> None:
    if (found := verified_sha256(path)) != sha256:
        raise Damaged(
            f"{shown} is damaged: its sha256 is {found}; hand in the weights again, or delete it"
        )


def _wrong(store: Store, key: str, sha256: str) -> str:
    """What is wrong with what the store holds now; "" when it has this digest."""
    try:
        for _ in store.verified(key, sha256):
            pass
    except Damaged as error:
        return str(error)
    return ""


def _download(store: Store, key: str, target: Path) -> None:
    """Write the blob beside `target`, verify it, and only then give it its name."""
    for left in target.parent.glob(f"{target.name}.*.part"):
        left.unlink(missing_ok=True)  # by a process that was killed: nobody else holds the lock
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        try:
            _write(store, key, temporary)
        except Damaged:  # what was altered on its way here is sound the second time
            _write(store, key, temporary)
        os.replace(temporary, target)
    except Damaged as error:
        raise Damaged(f"{error}; hand in the weights again, or delete it") from error
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror or error}; it takes a writable folder with"
            " room for the weights: free some, or name another one in XDG_CACHE_HOME"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(store: Store, key: str, file: Path) -> None:
    with file.open("wb") as opened:
        for piece in store.verified(key, key.rpartition("/")[2]):
            opened.write(piece)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One holder at a time on this machine. The file stays: removing it would let two in."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

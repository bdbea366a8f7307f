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
        if _stored_sha256(store, key) == sha256:
            return sha256
        store.put(key, data)
    else:
        with suppress(AlreadyThere):  # somebody else wrote the same bytes meanwhile
            store.put(key, data, if_absent=True)
    if (found := _stored_sha256(store, key)) != sha256:
        raise StorageError(
            f"{store.uri}/{key}: sha256 of what was stored is {found or 'another'}, not {sha256};"
            " the file changed while it was read, or the store is faulty: try again"
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


def _stored_sha256(store: Store, key: str) -> str:
    """Of what the store holds now; "" when the store itself finds it damaged."""
    digest = hashlib.sha256()
    try:
        for piece in store.chunks(key):
            digest.update(piece)
    except Damaged:
        return ""
    return digest.hexdigest()


def _download(store: Store, key: str, target: Path) -> None:
    """Write the blob beside `target`, verify it, and only then give it its name."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for piece in store.chunks(key):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != target.name:
            raise Damaged(
                f"{store.uri}/{key} is damaged: its sha256 is {digest.hexdigest()};"
                " hand in the weights again, or delete it"
            )
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One holder at a time on this machine. The file stays: removing it would let two in."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

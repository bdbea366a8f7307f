"""Stores: flat keys to bytes under one storage prefix; `Store.open` is the way to one.

A `Store` is what the rest of the project knows. folder.py keeps objects in a folder, s3.py in a
bucket. Keys are relative posix paths.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage.address import Folder, parse

TEMPORARY = ".tmp-"
"""How the names of half-written files begin; no part of a key may."""
_KEY_BYTES = 900


class Missing(StorageError):
    """There is no object of this key."""


class AlreadyThere(StorageError):
    """A conditional put found an object of this key."""


class Unreachable(StorageError):
    """The store does not answer, or asks to be left alone: the same call may work later."""


class Damaged(StorageError):
    """An object is not what it was when it was written."""


@dataclass(frozen=True)
class Entry:
    """One object in a listing."""

    key: str
    size: int


class Store(ABC):
    """Objects under one prefix. Picklable, thread-safe, without state that could go stale."""

    settle_seconds: float = 0.0
    """How long after a conditional put several writers may still believe that they won."""

    @staticmethod
    def open(uri: str) -> "Store":
        """The store at `uri`: a plain path, `file:///absolute/path` or `s3://bucket/prefix`.

        Nothing is created or contacted. Raises RequestError for anything else.
        """
        address = parse(uri)
        if isinstance(address, Folder):
            from orchestrator.storage.folder import FolderStore

            return FolderStore(address.path)
        from orchestrator.storage.s3 import S3Store

        return S3Store(address)

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where this store is, in a form that `Store.open` takes; it carries no secret."""

    @abstractmethod
    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        """Write an object as a whole: it is durable when this returns, and never seen torn.

        `data` is the content, or a file holding it. With `if_absent`, raises AlreadyThere and
        changes nothing when the key is taken. Raises StorageError.
        """

    @abstractmethod
    def chunks(self, key: str) -> Iterator[bytes]:
        """The content of an object, piece by piece. Raises Missing at the first piece."""

    @abstractmethod
    def list(self, prefix: str = "") -> "list[Entry]":
        """All objects in the folder `prefix` and below it, sorted by key; [] when none."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """The size of an object in bytes; None when there is none."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object. It is no error when there is none."""

    @abstractmethod
    def sub(self, prefix: str) -> "Store":
        """The store of everything below the folder `prefix`."""

    def get(self, key: str) -> bytes:
        """The content of an object. Raises Missing."""
        return b"".join(self.chunks(key))

    def exists(self, key: str) -> bool:
        """Is there an object of this key?"""
        return self.size(key) is not None

    def local_path(self, key: str) -> Path | None:
        """A file of this machine that holds the object, where there happens to be one.

        Only to save a copy: never to be written to, and callers must cope with None.
        """
        return None


def check_key(key: str) -> str:
    """`key`, when it may name an object. Raises StorageError saying the rule."""
    parts = key.split("/")
    if any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
        raise StorageError(
            f"a storage key is a relative path without empty, '.' or '..' parts, got {key!r}"
        )
    if "\\" in key or not key.isprintable() or len(key.encode()) > _KEY_BYTES:
        raise StorageError(
            f"a storage key is printable, without backslashes, of at most {_KEY_BYTES} bytes,"
            f" got {key[:80]!r}"
        )
    return key

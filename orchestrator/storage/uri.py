"""Stores: flat keys to bytes under one storage prefix; `Store.open` is the way to one.

A `Store` is what the rest of the project knows. folder.py keeps objects in a folder; stores of
other kinds implement the same methods. Keys are relative posix paths.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import RequestError, StorageError

TEMPORARY = ".tmp-"
"""How the names of half-written files begin; no part of a key may."""
_KEY_BYTES = 900


class Missing(StorageError):
    """There is no object of this key."""


class AlreadyThere(StorageError):
    """A conditional put found an object of this key."""


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
        """The store at `uri`: a plain path or `file:///absolute/path`.

        Nothing is created or contacted. Raises RequestError for anything else.
        """
        from orchestrator.storage.folder import FolderStore

        return FolderStore(_folder_of(uri))

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


def _folder_of(uri: str) -> Path:
    """The folder that a plain path or file:// URI names, absolute. Raises RequestError."""
    if not uri.strip():
        raise RequestError("storage is empty; give a folder, e.g. ./m2pt-studies")
    if "://" not in uri:
        if uri.startswith(("file:", "s3:")):
            raise RequestError(f"storage {uri!r}: write file:///absolute/path or a plain path")
        return Path(uri).expanduser().absolute()
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme == "s3":
        raise RequestError(
            f"storage {shown}: s3:// comes with release 0.2 of this project; this one keeps studies"
            " in a folder that all nodes share: give its path, or file:///absolute/path"
        )
    if parts.scheme != "file":
        raise RequestError(f"storage {shown}: the scheme must be file:// (or give a plain path)")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise RequestError(f"storage {shown}: file:// takes an absolute path, as file:///srv/m2pt")
    return Path(unquote(parts.path))

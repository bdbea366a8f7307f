"""Stores: flat keys to bytes under one storage prefix; `Store.open` is the way to one.

A `Store` is what the rest of the project knows. folder.py keeps objects in a folder, s3.py in a
bucket. Keys are relative posix paths.
"""

import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
    """One object in a listing.

    `modified` is when it was last written, in unix seconds by the store's clock; where that is not
    known it is never long ago. It takes no part in comparisons.
    """

    key: str
    size: int
    modified: float = field(default=math.inf, compare=False)


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
        return collected(self.chunks(key))

    def put_known(
        self, key: str, data: bytes | Path, sha256: str, *, if_absent: bool = False
    ) -> None:
        """As `put`, of content whose digest (hex) is known: it is not computed once more."""
        del sha256
        self.put(key, data, if_absent=if_absent)

    def put_hashing(self, key: str, data: bytes) -> str:
        """As `put`; the sha256 of `data` (hex), computed while it is on its way.

        What a store then remembers of the object need not hold its digest: only `verified` and
        `get_known` are sure to find out whether it was altered since.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        self.put_known(key, data, sha256)
        return sha256

    def verified(self, key: str, sha256: str) -> Iterator[bytes]:
        """As `chunks`; raises Damaged after the last piece unless all have this digest (hex)."""
        digest = hashlib.sha256()
        for piece in self.chunks(key):
            digest.update(piece)
            yield piece
        if digest.hexdigest() != sha256:
            raise damaged(f"{self.uri}/{key}", digest.hexdigest(), sha256)

    def get_known(self, key: str, sha256: str) -> bytes:
        """As `get`, of content of this digest. Read twice before Damaged is raised: what was
        altered on its way here is sound the second time."""
        try:
            return collected(self.verified(key, sha256))
        except Damaged:
            return collected(self.verified(key, sha256))

    def get_within(self, key: str, most_bytes: int) -> bytes:
        """As `get`, of an object that has no reason to be larger. Raises Damaged when it is.

        No more than that, and a piece, is ever held in memory.
        """
        pieces, held = [], 0
        for piece in self.chunks(key):
            held += len(piece)
            if held > most_bytes:
                raise Damaged(
                    f"{self.uri}/{key} has {self.size(key)} bytes, and what is kept there has at"
                    f" most {most_bytes}: it is not read"
                )
            pieces.append(piece)
        return b"".join(pieces)

    def exists(self, key: str) -> bool:
        """Is there an object of this key?"""
        return self.size(key) is not None

    def local_path(self, key: str) -> Path | None:
        """A file of this machine that holds the object, where there happens to be one.

        Only to save a copy: never to be written to, and callers must cope with None.
        """
        return None


def collected(pieces: Iterable[bytes]) -> bytes:
    """The pieces as one; large ones are not in memory twice."""
    whole = io.BytesIO()
    for piece in pieces:
        whole.write(piece)
    return whole.getvalue()


def damaged(shown: str, found: str, wanted: str) -> Damaged:
    """The error for an object, shown as given, whose sha256 is not what it should be."""
    return Damaged(f"{shown} is damaged: its sha256 is {found}, and should be {wanted}")


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

"""Writes that were begun and not ended: no objects, and never seen, but space that is taken."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage import clients, layout
from orchestrator.storage.address import Folder, parse
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.s3_errors import code_of, explained
from orchestrator.storage.uri import TEMPORARY, Store

_TEMPORARY = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{16}")
_OURS = (layout.STUDIES, layout.BLOBS, layout.PRETRAINED)
_NOT_TOLD = ("NotImplemented", "501", "AccessDenied", "MethodNotAllowed", "405")


@dataclass(frozen=True)
class Unfinished:
    """One of them: a multipart upload of a bucket, or a temporary file of a folder."""

    key: str
    """Of the object that it was to become; of a folder, of the file itself."""
    begun: float
    """In unix seconds, by the store's clock."""
    size: int = 0
    """Bytes; 0 where the store does not say."""
    upload: str = ""
    """S3's name of the upload."""


def unfinished(store: Store) -> list[Unfinished] | None:
    """All of them where our own objects lie; None where the server, or the key's policy, does not
    tell. Raises StorageError."""
    if isinstance(store, S3Store):
        return _uploads(store)
    return list(_temporary(_root(store))) if isinstance(store, FolderStore) else None


def discard(store: Store, one: Unfinished) -> None:
    """Free what it takes. It is no error when it is gone, or was ended meanwhile."""
    if isinstance(store, S3Store):
        client = clients.boto_client(store.attempts)
        with explained("delete", f"{store.uri}/{one.key}"):
            try:
                client.abort_multipart_upload(
                    Bucket=store.bucket.name, Key=_full(store, one.key), UploadId=one.upload
                )
            except client.exceptions.ClientError as error:
                if code_of(error) not in ("NoSuchUpload", "404"):
                    raise
        return
    path = _root(store) / one.key
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete {path}: {error.strerror or error}") from error


def _uploads(store: S3Store) -> list[Unfinished] | None:
    client, start = clients.boto_client(store.attempts), _full(store, "")
    with explained("list", store.uri):
        try:
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=store.bucket.name, Prefix=start
            )
            found = [
                Unfinished(
                    one["Key"].removeprefix(start),
                    one["Initiated"].timestamp(),
                    upload=one["UploadId"],
                )
                for page in pages
                for one in page.get("Uploads", ())
            ]
        except client.exceptions.ClientError as error:
            if code_of(error) in _NOT_TOLD:
                return None
            raise
    return [one for one in found if one.key.partition("/")[0] in _OURS]


def _temporary(root: Path) -> Iterator[Unfinished]:
    for path in (path for top in _OURS for path in (root / top).rglob(f"{TEMPORARY}*")):
        with suppress(FileNotFoundError):  # it has just got its name
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                status = path.stat()
                key = path.relative_to(root).as_posix()
                yield Unfinished(key, status.st_mtime, status.st_size)


def _root(store: Store) -> Path:
    address = parse(store.uri)
    assert isinstance(address, Folder)  # who calls this has looked
    return address.path


def _full(store: S3Store, key: str) -> str:
    """The key with the store's prefix."""
    return f"{store.bucket.prefix}/{key}" if store.bucket.prefix else key

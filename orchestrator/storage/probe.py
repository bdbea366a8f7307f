"""Does a storage address hold what is put there? Tried out, with every client that is used."""

import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import environment
from orchestrator.checks import Check
from orchestrator.errors import OrchestratorError, RequestError, StorageError
from orchestrator.storage import clients
from orchestrator.storage.address import Bucket, Folder, parse
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.s3_errors import CHECKSUM_REMEDY, REMEDIES
from orchestrator.storage.uri import Store

_SMALL = b"m2pt was here\n"
_PART_BYTES = 5 * 1024 * 1024
"""The least that S3 allows."""
_LARGE_BYTES = 6 * 1024 * 1024
_ANOTHER = "make it writable for this user, or choose another storage"
_STEPS = "put, get, list, multipart and delete"


@dataclass(frozen=True)
class _Client:
    """The five things a client has to do, on plain names; each raises when it cannot."""

    name: str
    put: Callable[[str, bytes], object]
    get: Callable[[str], bytes]
    names: Callable[[], list[str]]
    delete: Callable[[str], object]


def probe(uri: str) -> list[Check]:
    """Put, get, list, upload in parts and delete at `uri`, through every client, read back.

    Takes about a second; nothing is left behind. Raises nothing: what does not work is a Check
    that is not ok.
    """
    try:
        store = Store.open(uri)
    except RequestError as error:
        return [_failed("storage address", error)]
    if not isinstance(store, S3Store):
        return _through_all(store)
    store = store.impatient()
    try:
        store.list("m2pt-probe")  # a folder that is not there: the answer is short
    except OrchestratorError as error:
        return [_failed("storage", error)]
    reached = Check("storage", True, f"{store.uri} at {clients.endpoint_shown()} answers")
    found = _through_all(store)
    if all(check.ok for check in found):
        return [reached, *found]
    with environment.s3_checksums("when_required"):
        other = _through_all(store)
    if not all(check.ok for check in other):
        return [reached, *found]
    detail = "this server does not take the checksums that S3 clients send by default"
    needed = Check("storage checksums", False, detail, CHECKSUM_REMEDY)
    return [reached, *(replace(c, remedy=c.remedy and CHECKSUM_REMEDY) for c in found), needed]


def check_writable(store: Store) -> None:
    """Put, get and delete one small object. Raises StorageError; leaves nothing behind."""
    patient = store.impatient() if isinstance(store, S3Store) else store
    with _scratch(patient) as below:
        below.put("object", _SMALL)
        if below.get("object") != _SMALL:
            raise StorageError(f"{store.uri} gives other bytes than were put there")
        below.delete("object")


def _through_all(store: Store) -> list[Check]:
    try:
        with _scratch(store) as below:
            return [_through(client) for client in (_ours(below), _pyarrow(below))]
    except OrchestratorError as error:
        return [_failed("storage clean-up", error)]


def _through(client: _Client) -> Check:
    """All steps with one client; the first that fails is told."""
    began = time.monotonic()
    large = hashlib.sha256(_SMALL).digest() * (_LARGE_BYTES // 32)
    name, step = f"storage by {client.name}", "put"
    try:
        client.put("small", _SMALL)
        step = "get"
        _compare(client.get("small"), _SMALL)
        step = "list"
        if client.names() != ["small"]:
            raise StorageError(f"found {client.names()} where only 'small' was put")
        step = "multipart"
        client.put("large", large)
        _compare(client.get("large"), large)
        step = "delete"
        client.delete("small")
        client.delete("large")
        if client.names():
            raise StorageError(f"still found {client.names()} after deleting")
    except (OrchestratorError, OSError, ValueError) as error:
        return _failed(f"{name}: {step}", error)
    return Check(name, True, f"{_STEPS} work, in {time.monotonic() - began:.1f} s")


def _compare(found: bytes, wanted: bytes) -> None:
    if found != wanted:
        raise StorageError(f"{len(wanted)} bytes were put, {len(found)} others came back")


def _failed(name: str, error: Exception) -> Check:
    """What an error says before its remedy, and the remedy, as our messages are written."""
    text = environment.redacted(" ".join(str(error).split()))
    if isinstance(error, OrchestratorError):
        detail, _, remedy = text.partition("; ")
        return Check(name, False, detail, remedy or _ANOTHER)
    return Check(name, False, text, _remedy_of_pyarrow(text))


def _remedy_of_pyarrow(text: str) -> str:
    """pyarrow only has text, in which S3's names of faults are spelled in two ways."""
    plain = text.replace("_", "").lower()
    if "411" in plain or "contentlength" in plain:
        return CHECKSUM_REMEDY
    for code, remedy in REMEDIES.items():
        if code.lower() in plain:
            return remedy.format(operation="all of s3:PutObject, GetObject and DeleteObject")
    if "aws" in plain or "curl" in plain:
        return "boto3 and pyarrow must both reach it: check AWS_ENDPOINT_URL, AWS_REGION, proxies"
    return _ANOTHER


def _ours(store: Store) -> _Client:
    name = "boto3" if isinstance(store, S3Store) else "files"
    if isinstance(store, S3Store):
        store = replace(store, part_bytes=_PART_BYTES)
    return _Client(
        name, store.put, store.get, lambda: [entry.key for entry in store.list()], store.delete
    )


def _pyarrow(store: Store) -> _Client:
    from pyarrow import fs

    files, root = clients.filesystem(store.uri, attempts=clients.QUICK_ATTEMPTS)
    root = f"{root}/pyarrow"

    def put(name: str, data: bytes) -> None:
        if isinstance(files, fs.LocalFileSystem):
            Path(root).mkdir(parents=True, exist_ok=True)
        with files.open_output_stream(f"{root}/{name}") as stream:
            stream.write(data)

    def get(name: str) -> bytes:
        with files.open_input_file(f"{root}/{name}") as file:
            return bytes(file.read())

    def names() -> list[str]:
        selector = fs.FileSelector(root, allow_not_found=True)
        return [one.base_name for one in files.get_file_info(selector) if one.is_file]

    return _Client("pyarrow", put, get, names, lambda name: files.delete_file(f"{root}/{name}"))


@contextmanager
def _scratch(store: Store) -> Iterator[Store]:
    """A place of our own below a store, which is gone afterwards with all that was made there."""
    name = f"m2pt-probe-{secrets.token_hex(4)}"
    address = parse(store.uri)
    before = _missing(address.path) if isinstance(address, Folder) else []
    try:
        yield store.sub(name)
    finally:
        if isinstance(address, Bucket):
            _empty(store.sub(name))
        else:
            shutil.rmtree(address.path / name, ignore_errors=True)
            for folder in before:
                with suppress(OSError):  # somebody else puts something there already
                    folder.rmdir()


def _missing(folder: Path) -> list[Path]:
    """`folder` and its parents, as far as they do not exist."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _empty(store: Store) -> None:
    """Delete whatever lies there, also what pyarrow leaves to mark a folder."""
    assert isinstance(store, S3Store)
    from botocore.exceptions import BotoCoreError, ClientError

    client: Any = clients.boto_client(store.attempts)
    bucket, start = store.bucket.name, f"{store.bucket.prefix}/"
    with suppress(BotoCoreError, ClientError):  # the probe itself has said what does not work
        for one in client.list_objects_v2(Bucket=bucket, Prefix=start).get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=one["Key"])

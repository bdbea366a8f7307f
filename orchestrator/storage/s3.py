"""Objects in a bucket of S3 or of a server that speaks it.

A put is believed only after the object was read back, or, where that would cost much more, was
seen with its size and the digest that went up with it.
"""

import hashlib
import io
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import StorageError
from orchestrator.storage import clients
from orchestrator.storage.address import Bucket
from orchestrator.storage.s3_errors import code_of, explained
from orchestrator.storage.s3_read import RANGE_BYTES, Reading
from orchestrator.storage.uri import AlreadyThere, Entry, Missing, Store, check_key, damaged

_READ_BACK_BYTES = 256 * 1024
"""Up to it reading an object costs about as much as asking for its size."""
_CHUNK_BYTES = 4 * 1024 * 1024
_KEY_BYTES = 1024
UPLOADS = 8
"""Parts of one object that are on their way at once."""
_LOOKS = 3
_LOOK_SECONDS = 0.2
_SHA256, _WRITER = "m2pt-sha256", "m2pt-writer"
_NO_CONDITIONS = ("NotImplemented", "501")
_TAKEN = ("PreconditionFailed", "412")
_CONFLICT = ("ConditionalRequestConflict", "409")


@dataclass(frozen=True)
class S3Store(Store):
    """Objects under a prefix of a bucket. It holds no client and no credentials: see clients.py."""

    bucket: Bucket
    attempts: int = clients.ATTEMPTS
    part_bytes: int = 16 * 1024 * 1024
    """Larger objects are uploaded in parts of this size, several at a time."""
    range_bytes: int = RANGE_BYTES
    """Larger objects are read in ranges of this size, several at a time."""
    page_size: int = 1000
    """Keys in one answer to `list`."""

    settle_seconds = 2.0
    """Some servers look first and write then: this is many times what such a put of a few
    hundred bytes takes. A slower one is fenced off by the lease's token and the journal's."""

    @property
    def uri(self) -> str:
        return self.bucket.uri

    def impatient(self) -> "S3Store":
        """The same store for a person who waits for an answer: it gives up soon."""
        return replace(self, attempts=clients.QUICK_ATTEMPTS)

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        self.put_known(key, data, "", if_absent=if_absent)

    def put_known(
        self, key: str, data: bytes | Path, sha256: str, *, if_absent: bool = False
    ) -> None:
        where, shown = self._at(key), self._shown(key)
        if if_absent and self.size(key) is not None:  # some servers ignore the condition below
            raise AlreadyThere(f"{shown} is already there")
        writer = secrets.token_hex(8)
        with _reading(data, shown) as source, explained("write", shown):
            size = source.seek(0, io.SEEK_END)
            if size > self.part_bytes:
                about = {_SHA256: sha256 or _sha256(source), _WRITER: writer}
                self._upload(source, about, where)
            else:
                source.seek(0)
                content = source.read()
                about = {_SHA256: hashlib.sha256(content).hexdigest(), _WRITER: writer}
                self._put_whole(content, about, where, if_absent=if_absent)
        self._verify(key, size, about, if_absent=if_absent)

    def put_hashing(self, key: str, data: bytes) -> str:
        if len(data) <= self.part_bytes:
            return super().put_hashing(key, data)
        about = {_WRITER: secrets.token_hex(8)}
        with explained("write", self._shown(key)), ThreadPoolExecutor(1) as beside:
            digest = beside.submit(hashlib.sha256, data)
            self._upload(io.BytesIO(data), about, self._at(key))
        self._verify(key, len(data), about, if_absent=False)
        return digest.result().hexdigest()

    def chunks(self, key: str) -> Iterator[bytes]:
        return self.verified(key, "")

    def verified(self, key: str, sha256: str) -> Iterator[bytes]:
        where, shown, digest = self._at(key), self._shown(key), hashlib.sha256()
        with explained("read", shown):
            reading = Reading(self._client, where, shown, self.attempts, self.range_bytes)
            first = reading.first()
            for piece in reading.pieces(first):
                digest.update(piece)
                yield piece
        for wanted in (_about(first).get(_SHA256), sha256):
            if wanted and wanted != digest.hexdigest():
                raise damaged(shown, digest.hexdigest(), wanted)

    def list(self, prefix: str = "") -> list[Entry]:
        root = f"{self.bucket.prefix}/" if self.bucket.prefix else ""
        start = f"{root}{check_key(prefix)}/" if prefix else root
        with explained("list", f"{self.uri}/{prefix}".rstrip("/")):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket.name,
                Prefix=start,
                PaginationConfig={"PageSize": self.page_size},
            )
            found = [
                Entry(one["Key"].removeprefix(root), one["Size"], one["LastModified"].timestamp())
                for page in pages
                for one in page.get("Contents", ())
                if not one["Key"].endswith("/")  # what other programs leave for an empty folder
            ]
        return sorted(found, key=lambda entry: entry.key)

    def size(self, key: str) -> int | None:
        found = self._head(key)
        return None if found is None else int(found["ContentLength"])

    def delete(self, key: str) -> None:
        with explained("delete", self._shown(key)):
            self._client.delete_object(**self._at(key))

    def sub(self, prefix: str) -> "S3Store":
        below = f"{self.bucket.prefix}/{check_key(prefix)}".lstrip("/")
        return replace(self, bucket=Bucket(self.bucket.name, below))

    @property
    def _client(self) -> Any:
        return clients.boto_client(self.attempts)

    def _at(self, key: str) -> dict[str, str]:
        full = f"{self.bucket.prefix}/{check_key(key)}".lstrip("/")
        if len(full.encode()) > _KEY_BYTES:
            raise StorageError(
                f"{self._shown(key)[:100]}...: a key in S3 has at most {_KEY_BYTES} bytes,"
                f" prefix and all, got {len(full.encode())}: choose a shorter prefix or name"
            )
        return {"Bucket": self.bucket.name, "Key": full}

    def _shown(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _head(self, key: str) -> Mapping[str, Any] | None:
        """What S3 says about an object; None when there is none."""
        where = self._at(key)
        with explained("look at", self._shown(key)):
            try:
                found: Mapping[str, Any] = self._client.head_object(**where)
                return found
            except self._client.exceptions.ClientError as error:
                if code_of(error) in ("404", "NoSuchKey", "NotFound"):
                    return None
                # the answer to HEAD has no body: hear from a GET what the matter is
                self._client.get_object(**where, Range="bytes=0-0")["Body"].close()
                raise

    def _put_whole(
        self, content: bytes, about: Mapping[str, str], where: Mapping[str, str], *, if_absent: bool
    ) -> None:
        request = {**where, "Body": content, "Metadata": dict(about)}
        if not if_absent:
            self._client.put_object(**request)
            return
        for pause in (0.1, 0.5, None):
            try:
                self._client.put_object(**request, IfNoneMatch="*")
                return
            except self._client.exceptions.ClientError as error:
                if code_of(error) in _NO_CONDITIONS:
                    self._client.put_object(**request)
                    return
                if code_of(error) not in (*_TAKEN, *_CONFLICT):
                    raise
                if self._is_ours(where, about):  # the answer to an attempt before got lost
                    return
                if code_of(error) in _TAKEN or pause is None:
                    raise
            time.sleep(pause)

    def _is_ours(self, where: Mapping[str, str], about: Mapping[str, str]) -> bool:
        try:
            found = self._client.head_object(**where)
        except self._client.exceptions.ClientError:
            return False
        return _about(found) == about

    def _upload(self, source: BinaryIO, about: Mapping[str, str], where: Mapping[str, str]) -> None:
        """Upload in parts, and make sure that what went up is what was announced."""
        from boto3.s3.transfer import TransferConfig

        source.seek(0)
        reader = source if isinstance(source, io.BytesIO) else _Digesting(source)
        transfer = TransferConfig(
            multipart_threshold=self.part_bytes,
            multipart_chunksize=self.part_bytes,
            max_concurrency=UPLOADS,
        )
        try:
            self._client.upload_fileobj(
                reader,
                where["Bucket"],
                where["Key"],
                ExtraArgs={"Metadata": dict(about)},
                Config=transfer,
            )
        except self._client.exceptions.ClientError as error:
            # complete already, when the answer that said so got lost and it was asked again
            if code_of(error) != "NoSuchUpload" or not self._is_ours(where, about):
                raise
        if isinstance(reader, _Digesting) and reader.digest.hexdigest() != about[_SHA256]:
            raise StorageError(
                f"s3://{where['Bucket']}/{where['Key']}: the file changed while read"
            )

    def _verify(self, key: str, size: int, about: Mapping[str, str], *, if_absent: bool) -> None:
        """Raise StorageError unless the object stands as it was put; a reader may lag a little."""
        found = ""
        for look in range(_LOOKS):
            if look:
                time.sleep(_LOOK_SECONDS)
            found = self._found(key, size, about)
            if not found:
                return
        if if_absent and "another writer" in found:
            raise AlreadyThere(f"{self._shown(key)} is already there: of {found}")
        raise StorageError(
            f"cannot write {self._shown(key)} at {clients.endpoint_shown()}: the server took"
            f" {size} bytes, but then {found}; try again, and do not trust this server if it"
            " happens again"
        )

    def _found(self, key: str, size: int, about: Mapping[str, str]) -> str:
        """What is wrong with what stands at `key`; "" when it is what was put there."""
        where, small = self._at(key), size <= _READ_BACK_BYTES
        try:
            with explained("read back", self._shown(key)):
                answer = self._client.get_object(**where) if small else self._head(key)
                content = answer["Body"].read() if small and answer else None
        except Missing:
            answer = None
        if answer is None:
            return "had no such object"
        kept = _about(answer)
        if kept != about:
            other = kept.get(_WRITER)
            return "showed an object of another writer" if other else "had lost its metadata"
        if answer["ContentLength"] != size:
            return f"had {answer['ContentLength']} of them"
        if content is not None and hashlib.sha256(content).hexdigest() != about[_SHA256]:
            return "gave other bytes"
        return ""


class _Digesting:
    """A file that is read once, from its beginning, and knows its digest then."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, amount: int = -1) -> bytes:
        piece = self._source.read(amount)
        self.digest.update(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def seekable(self) -> bool:
        return True


@contextmanager
def _reading(data: bytes | Path, shown: str) -> Iterator[BinaryIO]:
    try:
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
            yield source
    except OSError as error:
        raise StorageError(
            f"cannot write {shown}: cannot read {data!s:.200}: {error.strerror or error}"
        ) from error


def _sha256(source: BinaryIO) -> str:
    source.seek(0)
    digest = hashlib.sha256()
    while piece := source.read(_CHUNK_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _about(answer: Mapping[str, Any]) -> dict[str, str]:
    """Our metadata of an object; some servers change the case of the names."""
    known = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    return {name: known[name] for name in (_SHA256, _WRITER) if name in known}

"""Where data files lie, a folder or an S3 bucket: found, opened, asked again after a fault.

The endpoint and the credentials of S3 come from the standard AWS variables (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, ...), through pyarrow. Nothing is written and nothing is kept on this machine's
disk: what is needed of an object is read as ranges of its bytes.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from m2pt.data.schema import DataAway, DataError

ABOUT = "dataset.json"
LARGEST_ABOUT_BYTES = 64 * 1024 * 1024
_BEGUN = "import.json"
_PART = ("part-", ".parquet")
_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_CHUNK_BYTES = 8 * 1024 * 1024
_patience = [0.0]  # seconds; the newest one counts, in all of this process's reading threads

_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN})
# S3 faults that asking again does not mend, each with what does.
_LASTING = {
    "NO_SUCH_BUCKET": "there is no such bucket; check the URI and AWS_ENDPOINT_URL",
    "ACCESS_DENIED": "access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what "
    "the key may read",
    "INVALID_ACCESS_KEY": "the key is unknown; check AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the secret is wrong; check AWS_SECRET_ACCESS_KEY",
    "SSL connect error": "the server does not speak TLS; write http:// in AWS_ENDPOINT_URL",
    "HTTP status 4": "the server refuses the request; check AWS_ENDPOINT_URL and the credentials",
}
T = TypeVar("T")


@dataclass(frozen=True)
class DataFile:
    """One file as it was found; `changed_ns` since 1970."""

    uri: str
    size_bytes: int
    changed_ns: int

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.uri.rpartition("/")[2]


@dataclass(frozen=True)
class Place:
    """What a source leads to: one file, or the parts of a folder, sorted by name.

    Equal places hold the same files, as far as their sizes and times tell. `about` is the text of
    the folder's dataset.json, or None where there is none.
    """

    uri: str
    files: tuple[DataFile, ...]
    about: str | None = None


def find(source: str) -> Place:
    """The file or the folder of parts that a path, file:// or s3:// address names.

    Raises:
        DataError: nothing is there that could be read; says the address and what to do.
        DataAway: the server cannot be reached just now.
    """
    system, path = _opened(source)
    try:
        info = asked(source, lambda: system.get_file_info(path), attempts=1)
        if info.type == fs.FileType.File:
            return Place(source, (_file(source, info),))
        if info.type != fs.FileType.Directory:
            raise FileNotFoundError
        return _folder(source, system, path)
    except FileNotFoundError as error:
        where = "" if "://" in source else " on this machine"
        raise DataError(
            f"{source}: does not exist{where}; name a Parquet file, or a folder with parts "
            "part-*.parquet"
        ) from error


def is_there(source: str) -> bool:
    """Whether there is a file or a folder at a path, file:// or s3:// address.

    Raises:
        DataAway: the server cannot be reached just now.
    """
    try:
        system, path = _opened(source)
        found = asked(source, lambda: system.get_file_info(path), attempts=1)
    except DataError:
        return True  # something is wrong with it, and whoever reads it says what
    return bool(found.type != fs.FileType.NotFound)


def open_file(file: DataFile) -> Any:
    """The file for reading at any place: a pyarrow NativeFile, to be closed. Raises OSError."""
    system, path = _opened(file.uri)
    return system.open_input_file(path)


def sha256_of(file: DataFile) -> str:
    """Of all its bytes. Raises DataError, DataAway."""

    def read() -> str:
        digest = hashlib.sha256()
        with open_file(file) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    return asked(file.uri, read)


def asked(uri: str, action: Callable[[], T], *, attempts: int = _ATTEMPTS) -> T:
    """What `action` gives; it is asked again, after growing pauses, while a fault may pass.

    pyarrow itself asks three times within about six seconds; five attempts last a minute, and
    `waiting_for` makes it longer.

    Raises:
        DataAway: the fault did not pass.
        DataError: asking again would not help.
        OSError: something else is wrong, such as a missing or a damaged file.
    """
    began = time.monotonic()
    for attempt in count():
        try:
            return action()
        except PermissionError as error:
            raise DataError(f"{uri}: may not be read by this user; change its mode") from error
        except OSError as error:
            if why := next((why for sign, why in _LASTING.items() if sign in str(error)), None):
                raise DataError(f"{uri}: {why} ({_plain(error)})") from error
            if "AWS Error" not in str(error) and error.errno not in _PASSING:
                raise
            if attempt >= attempts - 1 and time.monotonic() - began >= _patience[-1]:
                raise DataAway(
                    f"{uri}: cannot be reached ({_plain(error)}); check AWS_ENDPOINT_URL, and that "
                    "this machine gets through to it"
                ) from error
            time.sleep(min(_FIRST_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS))
    raise AssertionError("it counts for ever")


@contextmanager
def waiting_for(seconds: float) -> Iterator[None]:
    """Meanwhile, in this process, a server that is away is waited for so long before DataAway."""
    _patience.append(seconds)
    try:
        yield
    finally:
        _patience.pop()


def _opened(uri: str) -> tuple[Any, str]:
    """A file system, and the path of `uri` in it."""
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return fs.LocalFileSystem(), fs.FileSystem.from_uri(uri)[1]
    return _bucket(parts.netloc, os.getpid()), f"{parts.netloc}{parts.path}".rstrip("/")


@lru_cache(maxsize=8)
def _bucket(name: str, pid: int) -> Any:
    del pid  # a forked process must not use its parent's connections
    return fs.FileSystem.from_uri(f"s3://{name}")[0]


def _file(uri: str, info: Any) -> DataFile:
    return DataFile(uri, info.size, info.mtime_ns or 0)


def _folder(source: str, system: Any, path: str) -> Place:
    inside = asked(source, lambda: system.get_file_info(fs.FileSelector(path)), attempts=1)
    infos = {info.base_name: info for info in inside if info.type == fs.FileType.File}
    start, end = _PART
    names = sorted(name for name in infos if name.startswith(start) and name.endswith(end))
    base = source.rstrip("/")
    if not names:
        raise DataError(
            f"{source}: is a folder without parts part-*.parquet; name a Parquet file, or fill the "
            "folder with `orchestrator data import`"
        )
    if _BEGUN in infos and ABOUT not in infos:
        raise DataError(
            f"{source}: its import is not finished; give the command that began it again, and it "
            "goes on"
        )
    files = tuple(_file(f"{base}/{name}", infos[name]) for name in names)
    about = None
    if ABOUT in infos:
        about = asked(source, lambda: _text(_file(f"{base}/{ABOUT}", infos[ABOUT])))
    return Place(source, files, about)


def _text(file: DataFile) -> str:
    if file.size_bytes > LARGEST_ABOUT_BYTES:
        raise DataError(
            f"{file.uri}: has {file.size_bytes:,} bytes, and may have {LARGEST_ABOUT_BYTES:,}; "
            "write the data set again, with larger parts"
        )
    with open_file(file) as stream:
        content: bytes = stream.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file.uri}: is no text ({error}); write the data set again") from error


def _plain(error: OSError) -> str:
    """What the server said, without what is only for its own log."""
    return str(error).partition(" (Request ID")[0].removesuffix(".")

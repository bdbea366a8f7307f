"""Files that others put into a folder or under an S3 prefix: listed and read, never written."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

from orchestrator.errors import RequestError, StorageError
from orchestrator.storage.clients import QUICK_ATTEMPTS, filesystem
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import Missing, Store


@dataclass(frozen=True)
class ForeignFile:
    """One file by its path from the folder, with `/`; changed in nanoseconds since 1970."""

    path: str
    size: int
    changed_ns: int


@dataclass(frozen=True)
class Listing:
    """All files and folders below one folder, each sorted by path."""

    files: tuple[ForeignFile, ...]
    folders: tuple[str, ...]


class ForeignFolder:
    """A folder or prefix by its URI. Thread-safe."""

    def __init__(self, uri: str) -> None:
        """Contacts nothing. Raises RequestError when `uri` is none of a folder."""
        self.uri = uri.rstrip("/") or "/"
        self._files, path = filesystem(uri, "SOURCE")
        self._root = path.rstrip("/")

    def list(self) -> Listing:
        """Everything below it. Raises RequestError where it is not there, StorageError."""
        from pyarrow import fs

        files, _ = filesystem(self.uri, "SOURCE", attempts=QUICK_ATTEMPTS)  # a person waits
        with explained(self.uri):
            found = files.get_file_info(fs.FileSelector(self._root, recursive=True))
        plain = [
            ForeignFile(self._relative(info.path), info.size, info.mtime_ns or 0)
            for info in found
            if info.type == fs.FileType.File and not info.path.endswith("/")
        ]
        folders = [self._relative(i.path) for i in found if i.type == fs.FileType.Directory]
        return Listing(tuple(sorted(plain, key=lambda file: file.path)), tuple(sorted(folders)))

    def read(self, path: str) -> bytes:
        """The content of the file at the relative `path`. Raises StorageError."""
        with explained(f"{self.uri}/{path}"), self._files.open_input_file(self._at(path)) as file:
            return cast(bytes, file.read())

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The file at the relative `path`, to be read from any place. Raises StorageError."""
        with explained(f"{self.uri}/{path}"), self._files.open_input_file(self._at(path)) as file:
            yield file

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root).strip("/")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what the file system says into errors of ours that name the URI."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{uri}: no such file or folder; check the path") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{uri}: a file name is not UTF-8 ({error.object!r}); rename the file"
        ) from error
    except OSError as error:
        if uri.startswith("s3://"):
            _ask(uri)
        raise StorageError(
            f"{uri}: cannot be read: {error}; put it right and give the same command again"
        ) from error


def _ask(uri: str) -> None:
    """Raise what our own client says: more than pyarrow's of credentials, buckets, endpoints."""
    store = Store.open(uri)
    patience = store.impatient() if isinstance(store, S3Store) else store
    with suppress(Missing):
        patience.get("dataset.json")

"""Objects as files of a folder, on a disk or a file system that all nodes share."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage.uri import TEMPORARY, AlreadyThere, Entry, Missing, Store, check_key

_CHUNK_BYTES = 4 * 1024 * 1024
_PUT_ATTEMPTS = 50


class FolderStore(Store):
    """A put is a temporary file, fsync, rename (or link), and fsync of the folder."""

    settle_seconds = 0.05

    def __init__(self, root: Path) -> None:
        self._root = root

    def __repr__(self) -> str:
        return f"FolderStore({str(self._root)!r})"

    @property
    def uri(self) -> str:
        return self._root.as_uri()

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        target = self._path(key)
        if if_absent and target.exists():
            raise AlreadyThere(f"{self.uri}/{key} is already there")
        with _explained(f"write {target}"):
            temporary = _write_temporary(target.parent, data)
            try:
                if if_absent:
                    _link(temporary, target)
                else:
                    os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def chunks(self, key: str) -> Iterator[bytes]:
        path = self._path(key)
        with _explained(f"read {path}"), path.open("rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                yield piece

    def list(self, prefix: str = "") -> list[Entry]:
        start = self._path(prefix) if prefix else self._root
        with _explained(f"list {start}"):
            found = [
                Entry(path.relative_to(self._root).as_posix(), of.st_size, of.st_mtime)
                for folder, _, names in os.walk(start, onerror=_raise_unless_missing)
                for path in (Path(folder) / name for name in names)
                if not path.name.startswith(TEMPORARY) and (of := _status(path)) is not None
            ]
        return sorted(found, key=lambda entry: entry.key)

    def size(self, key: str) -> int | None:
        path = self._path(key)
        with _explained(f"look at {path}"):
            return _size_of(path)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _explained(f"delete {path}"):
            path.unlink(missing_ok=True)
        _remove_empty_folders(path.parent, self._root)

    def sub(self, prefix: str) -> "FolderStore":
        return FolderStore(self._path(prefix))

    def local_path(self, key: str) -> Path | None:
        path = self._path(key)
        return path if path.is_file() else None

    def _path(self, key: str) -> Path:
        return self._root.joinpath(*check_key(key).split("/"))


@contextmanager
def _explained(action: str) -> Iterator[None]:
    """Turn what the operating system says into errors of ours that name the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"cannot {action}: there is no such object") from error
    except FileExistsError as error:
        raise AlreadyThere(f"cannot {action}: it is already there") from error
    except OSError as error:
        raise StorageError(f"cannot {action}: {error.strerror or error}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "; free some space there and resume"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "; make the folder writable for this user"
        case errno.ENOTDIR | errno.EISDIR:
            return "; a file and a folder of the same name are in each other's way"
    return ""


def _write_temporary(folder: Path, data: bytes | Path) -> Path:
    """A new file in `folder` that holds `data`, on the disk. Folders are made as needed."""
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    for attempt in range(_PUT_ATTEMPTS):
        try:
            _make_folders(folder)
            file = temporary.open("xb")
            break
        except FileNotFoundError:  # a delete elsewhere has just removed an empty folder
            if attempt == _PUT_ATTEMPTS - 1:
                raise
    try:
        with file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link(temporary: Path, target: Path) -> None:
    """Give `target` its content unless it has one: atomic, unlike a test and a rename."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.ENOSYS):
            raise StorageError(
                f"{target.parent}: this file system has no hard links, which a study's lease needs;"
                " choose another folder"
            ) from error
        raise


def _make_folders(folder: Path) -> None:
    """Create `folder` and its parents so that they outlive a power cut."""
    missing = []
    while not folder.is_dir():
        if folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):  # not exist_ok: it trips over a folder that comes and goes
            folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_of(path: Path) -> int | None:
    """The size of a file; None for what is not there or is no plain file."""
    found = _status(path)
    return None if found is None else found.st_size


def _status(path: Path) -> os.stat_result | None:
    """What the system knows of a file; None for what is not there or is no plain file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _remove_empty_folders(folder: Path, root: Path) -> None:
    """Object stores have no empty folders, so that ours keeps none either."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone: either way there is nothing to do
            return
        folder = folder.parent

"""Where rows go: a folder of parts, or one Parquet file that is put together from such a folder.

In the folder lie `import.json` (what was asked for, written before the first part), the parts,
for each an entry in `progress/` (written after it, and removed at the end), `skipped.json` where
files were skipped, and, last of all, `dataset.json`: without it the folder is no data set.
"""

import hashlib
import io
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2pt.data.write import merge, read_metadata
from orchestrator.errors import RequestError, StorageError
from orchestrator.storage.foreign import ForeignFolder
from orchestrator.storage.formats import check_format
from orchestrator.storage.uri import Missing, Store

FORMAT = 1
DATASET = "dataset.json"
REQUEST = "import.json"
SKIPPED = "skipped.json"
PROGRESS = "progress"
_LARGEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class PartRecord:
    """A part that is complete. A part of which every file was skipped has no rows and no object."""

    name: str
    rows: int
    bytes: int
    sha256: str
    chain: str
    """The content digest of all rows up to its end."""
    counts: tuple[tuple[int, ...], tuple[int, ...]]
    """Rows per class of the train and of the test split."""
    skipped: tuple[tuple[str, str], ...]
    """Path and reason of each file that is broken."""


@dataclass(frozen=True)
class Found:
    """What lies at a destination: whose import, and its `dataset.json` when it is finished."""

    identity: dict[str, Any] | None
    dataset: dict[str, Any] | None


class Destination(ABC):
    """Where one import goes; `parts` is the store of its folder."""

    uri: str
    parts: Store

    @abstractmethod
    def look(self) -> Found:
        """What is there already. Raises RequestError when it is something else than an import."""

    @abstractmethod
    def finish(self, dataset: Mapping[str, Any], skipped: Sequence[tuple[str, str]]) -> None:
        """Make the data set whole, once all its parts are there."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove what only an unfinished import needs."""

    @abstractmethod
    def is_import(self) -> bool:
        """Is an import of ours there, finished or not?"""

    @abstractmethod
    def clear(self) -> None:
        """Remove an import, the mark of its being one last, so that this can be repeated."""

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say whose parts will come."""
        self.parts.put(REQUEST, to_json(identity))

    def put(self, record: PartRecord, content: bytes) -> None:
        """Write a part, then that it is complete."""
        if record.rows:
            self.parts.put(record.name, content)
        said = {"format": FORMAT, **asdict(record)}
        self.parts.put(_progress(record.name), to_json(said))

    def complete(self, names: Sequence[str]) -> tuple[PartRecord, ...]:
        """The records of the parts that are there, from the first on, up to the first gap."""
        there = {entry.key: entry.size for entry in self.parts.list()}
        found: list[PartRecord] = []
        for name in names:
            if _progress(name) not in there:
                break
            record = _record(self.parts, _progress(name))
            if record.rows and there.get(name) != record.bytes:
                break
            found.append(record)
        return tuple(found)

    def _begun(self) -> dict[str, Any] | None:
        try:
            return read_json(self.parts, REQUEST)
        except Missing:
            return None


class FolderDestination(Destination):
    """A folder or prefix of parts."""

    def __init__(self, uri: str) -> None:
        self.parts = Store.open(uri)
        self.uri = self.parts.uri

    def look(self) -> Found:
        """See `Destination`."""
        identity = self._begun()
        if identity is None:
            if strangers := self.parts.list():
                raise RequestError(
                    f"DESTINATION {self.uri}: holds {strangers[0].key!r}, which is of no import; "
                    "choose an empty folder"
                )
            return Found(None, None)
        there = {entry.key: entry.size for entry in self.parts.list()}
        if DATASET not in there:
            return Found(identity, None)
        dataset = read_json(self.parts, DATASET)
        whole = all(there.get(part["name"]) == part["bytes"] for part in dataset["parts"])
        return Found(identity, dataset if whole else None)  # lost parts are made again

    def finish(self, dataset: Mapping[str, Any], skipped: Sequence[tuple[str, str]]) -> None:
        """See `Destination`."""
        if skipped:
            told = [{"path": path, "reason": reason} for path, reason in skipped]
            self.parts.put(SKIPPED, to_json({"format": FORMAT, "skipped": told}))
        self.parts.put(DATASET, to_json(dataset))
        self.tidy()

    def tidy(self) -> None:
        """See `Destination`."""
        for entry in self.parts.list(PROGRESS):
            self.parts.delete(entry.key)

    def is_import(self) -> bool:
        """See `Destination`."""
        return self.parts.exists(REQUEST)

    def clear(self) -> None:
        """See `Destination`."""
        _clear(self.parts, "")


class FileDestination(Destination):
    """One Parquet file; its parts lie beside it, in a folder of its name and `.import`."""

    def __init__(self, uri: str) -> None:
        parent, slash, self._name = uri.rpartition("/")
        self._folder = parent if slash and parent else slash or "."
        self._beside = Store.open(self._folder)
        self._work = f"{self._name}.import"
        self.parts = self._beside.sub(self._work)
        self.uri = f"{self._beside.uri}/{self._name}"

    def look(self) -> Found:
        """See `Destination`."""
        if not self._beside.exists(self._name):
            return Found(self._begun(), None)
        said = self._said()
        if said is None:
            raise RequestError(
                f"DESTINATION {self.uri}: a file is there that no import wrote; name another one"
            )
        return Found(said["request"], said["dataset"])

    def finish(self, dataset: Mapping[str, Any], skipped: Sequence[tuple[str, str]]) -> None:
        """See `Destination`."""
        about = {"request": self._begun(), "dataset": dataset, "skipped": skipped}
        metadata = {"dataset": dataset["dataset"], "import": about}
        parts = (io.BytesIO(self.parts.get(part["name"])) for part in dataset["parts"])
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole.parquet"
            merge(parts, metadata, whole)
            self._beside.put(self._name, whole)
        self.tidy()

    def tidy(self) -> None:
        """See `Destination`."""
        _clear(self._beside, f"{self._work}/")

    def is_import(self) -> bool:
        """See `Destination`."""
        if self._beside.exists(self._name):
            return self._said() is not None
        return self.parts.exists(REQUEST)

    def clear(self) -> None:
        """See `Destination`."""
        self._beside.delete(self._name)
        self.tidy()

    def _said(self) -> dict[str, Any] | None:
        """What the file says of the import that wrote it; None when none did."""
        with ForeignFolder(self._folder).open(self._name) as file:
            try:
                said = read_metadata(file).get("import")
            except ValueError:
                return None
        return said if isinstance(said, dict) and "request" in said else None


def open_destination(uri: str) -> Destination:
    """A file where the name ends in .parquet, else a folder. Raises RequestError."""
    return FileDestination(uri) if uri.endswith(".parquet") else FolderDestination(uri)


def digest_of(content: bytes) -> str:
    """The sha256 of an object."""
    return hashlib.sha256(content).hexdigest()


def to_json(values: Mapping[str, Any]) -> bytes:
    """A JSON object as it lies in a store."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_json(store: Store, key: str) -> dict[str, Any]:
    """An object that was written by `to_json`. Raises Missing, StorageError for anything else."""
    where = f"{store.uri}/{key}"
    content = store.get_within(key, _LARGEST_BYTES)
    try:
        said = json.loads(content)
        check_format(said.get("format", FORMAT), FORMAT, where)
        return dict(said)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StorageError(f"{where}: damaged ({error}); begin anew with --restart") from error


def _record(store: Store, key: str) -> PartRecord:
    said = read_json(store, key)
    said.pop("format", None)
    try:
        train, test = said.pop("counts")
        skipped = tuple((path, reason) for path, reason in said.pop("skipped"))
        return PartRecord(counts=(tuple(train), tuple(test)), skipped=skipped, **said)
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"{store.uri}/{key}: damaged ({error}); begin anew with --restart"
        ) from error


def _progress(part: str) -> str:
    return f"{PROGRESS}/{part}.json"


def _clear(store: Store, folder: str) -> None:
    """Remove an import from the folder ("" or with a slash at its end)."""
    keys = [entry.key.removeprefix(folder) for entry in store.list(folder.rstrip("/"))]
    ours = [key for key in keys if _is_ours(key)]
    for key in sorted(ours, key=lambda key: (key == REQUEST, key != DATASET)):
        store.delete(f"{folder}{key}")


def _is_ours(key: str) -> bool:
    part = key.startswith("part-") and key.endswith(".parquet")
    return part or key in (DATASET, REQUEST, SKIPPED) or key.startswith(f"{PROGRESS}/")

"""Reading data sets from Parquet files: first all small columns, then samples by row group.

A table is one file, or the parts of a folder one after the other. It has the columns `id`
(string), `split` (`train` or `test`), those that tell of a row (`columns.LABEL_COLUMNS`: `label`
and `label_name`, unless `dataset` says another task) and `data` (one sample), perhaps `group`
(string: rows of one group are never parted between training and validation), and a JSON object
under the schema metadata key `dataset`. Messages name a row by its number in its file, from 0.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2pt.data import columns, labels, manifest
from m2pt.data.config import Task
from m2pt.data.files import DataFile, Place, asked, find, open_file, sha256_of
from m2pt.data.labels import Labels
from m2pt.data.schema import DataAway, DataError, Schema, parse, task_of

Rows = npt.NDArray[np.int64]
T = TypeVar("T")

_ROWS_AT_ONCE = 65536
_PARTS_AT_ONCE = 2**22
_FILES_AT_ONCE = 8
LARGEST_GROUP_BYTES = 2**31 - 1
"""Of a row group in memory: what pyarrow holds in one array of bytes."""


@dataclass(frozen=True, eq=False)
class Part:
    """One file of a table; `first` is the number of its first row in the table."""

    file: DataFile
    first: int
    metadata: pq.FileMetaData


@dataclass(frozen=True, eq=False)
class Table:
    """All of a table of N rows in G row groups but its samples.

    `labels`, N of them; `test` (N,), whether a row is of the test split; `groups` (N,), what a row
    belongs to (a student, a recording), as numbers in the order of the names, or None without that
    column; `starts` (G + 1,), the first row of each row group, and the end; `id_hashes` (N,), as
    this process hashes text. `digest` is a sha256 over the content.
    """

    place: Place
    schema: Schema
    parts: tuple[Part, ...]
    labels: Labels
    test: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64] | None
    starts: Rows
    id_hashes: npt.NDArray[np.int64]
    digest: str

    def rows(self, split: str) -> Rows:
        """Numbers of the rows of one split, ascending."""
        return np.flatnonzero(self.test == (split == "test"))

    def part_of(self, row: int) -> Part:
        """The file that holds a row."""
        return next(part for part in reversed(self.parts) if part.first <= row)

    def where(self, row: int) -> str:
        """A row as messages name it."""
        return f"row {row - self.part_of(row).first} (id {self.ids(np.array([row]))[0]!r})"

    def ids(self, rows: Rows) -> list[str]:
        """The ids of some rows; reads them anew, since only messages need them."""
        found = []
        for row, group in zip(rows.tolist(), self.group_of(rows).tolist(), strict=True):
            column = self.read_column(group, "id")
            found.append(column[row - int(self.starts[group])].as_py())
        return found

    def group_of(self, rows: Rows) -> Rows:
        """The number of the row group that holds each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def read_column(self, group: int, name: str) -> pa.Array:
        """One column of one row group. Raises DataError, DataAway."""
        part = self.part_of(int(self.starts[group]))
        number = group - int(self.group_of(np.array(part.first)))
        coded = _has_dictionary(part.metadata, number, name)

        def read() -> pa.Array:
            with open_file(part.file) as source:
                stored = pq.ParquetFile(
                    source,
                    metadata=part.metadata,
                    pre_buffer=True,
                    read_dictionary=[name] if coded else None,
                )
                table = stored.read_row_group(number, columns=[name], use_threads=False)
            return _one_array(table.column(0))

        return _written_out(part.file.uri, number, _undamaged(part.file.uri, read))


def read_table(source: str) -> Table:
    """The checked index of a file or folder; read once per process while its files stay as is.

    Raises:
        DataError: no Parquet file, a column is missing or of another type, or a row breaks a rule.
        DataAway: the server that has it cannot be reached.
    """
    return _read_table(find(source))


@lru_cache(maxsize=16)
def _read_table(place: Place) -> Table:
    about = manifest.parse(place)
    with ThreadPoolExecutor(min(_FILES_AT_ONCE, len(place.files))) as pool:
        opened = list(pool.map(_metadata, place.files))
        schema = _one_schema(place, opened)
        found = list(pool.map(_read_rows, place.files, opened, repeat(schema)))
    counts = np.cumsum([0, *(metadata.num_rows for metadata in opened)])
    sizes = [meta.row_group(n).num_rows for meta in opened for n in range(meta.num_row_groups)]
    table = Table(
        place=place,
        schema=schema,
        parts=tuple(
            Part(file, int(first), metadata)
            for file, first, metadata in zip(place.files, counts, opened, strict=False)
        ),
        labels=labels.joined(
            [Labels(schema.task, len(schema.classes), part.labels) for part in found]
        ),
        test=np.concatenate([part.test for part in found]),
        groups=columns.group_numbers(
            [(file.uri, part) for file, part in zip(place.files, found, strict=True)]
        ),
        starts=np.cumsum([0, *sizes]),
        id_hashes=np.concatenate([part.id_hashes for part in found]),
        digest=about.digest if about else _digest(place),
    )
    if about:
        manifest.check(about, place, schema, table.test)
    _check_ids(table)
    return table


def _digest(place: Place) -> str:
    """The file's sha256, or one over those of the parts."""
    digests = [sha256_of(file) for file in place.files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    )


def _metadata(file: DataFile) -> pq.FileMetaData:
    def read() -> pq.FileMetaData:
        with open_file(file) as source:
            return pq.read_metadata(source)

    try:
        metadata = asked(file.uri, read)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file.uri}: not a readable Parquet file ({error}); write it again"
        ) from error
    for group in range(metadata.num_row_groups):
        _check_group_bytes(file.uri, group, metadata.row_group(group).total_byte_size)
    return metadata


def _one_schema(place: Place, opened: list[pq.FileMetaData]) -> Schema:
    schemas = [
        _schema(file.uri, metadata.schema.to_arrow_schema())
        for file, metadata in zip(place.files, opened, strict=True)
    ]
    for file, schema in zip(place.files, schemas, strict=True):
        if schema != schemas[0]:
            raise DataError(
                f"{file.uri}: `dataset` in its schema metadata is not that of "
                f"{place.files[0].name}; parts of one folder are of one data set: move it away"
            )
    return schemas[0]


def _schema(path: str, arrow: pa.Schema) -> Schema:
    kinds: columns.Kinds = {
        "id": (columns.is_text, "a string"),
        "split": (columns.is_text, "a string, train or test"),
        **columns.LABEL_COLUMNS[_task(path, arrow)],
        "data": (columns.is_bytes, "binary: the little-endian bytes of one sample"),
    }
    for name, (fits, rule) in kinds.items():
        if name not in arrow.names:
            raise DataError(f"{path}: no column {name!r}; add it, {rule}")
        if not fits(arrow.field(name).type):
            found = arrow.field(name).type
            raise DataError(f"{path}: column {name!r} is {found}; write it as {rule}")
    if "group" in arrow.names and not columns.is_text(arrow.field("group").type):
        found = arrow.field("group").type
        raise DataError(f"{path}: column 'group' is {found}; write it as a string")
    return parse(_declared(path, arrow), path)


def _task(path: str, arrow: pa.Schema) -> Task:
    """It decides which columns there must be; what else is wrong with `dataset` is told later."""
    try:
        told = json.loads((arrow.metadata or {})[b"dataset"])["task"]
    except (ValueError, LookupError, TypeError):
        return "classes"
    return task_of({"task": told}, path)


def _declared(path: str, arrow: pa.Schema) -> dict[str, Any]:
    raw = (arrow.metadata or {}).get(b"dataset")
    if raw is None:
        raise DataError(
            f"{path}: the schema metadata has no key `dataset`; add a JSON object with modality, "
            "dtype, shape, layout and classes (pyarrow: schema.with_metadata)"
        )
    try:
        declared = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{path}: schema metadata `dataset` is not JSON ({error})") from error
    if not isinstance(declared, dict):
        raise DataError(f"{path}: schema metadata `dataset` is no JSON object, but {declared!r}")
    return declared


def _read_rows(file: DataFile, metadata: pq.FileMetaData, schema: Schema) -> columns.SmallColumns:
    """The small columns of one file, checked."""
    grouped = "group" in metadata.schema.to_arrow_schema().names
    names = ["id", "split", *columns.LABEL_COLUMNS[schema.task], *["group"] * grouped]
    _check_lists(file.uri, metadata, schema)
    at_once = _ROWS_AT_ONCE
    if schema.task == "parts":
        at_once = max(1, _PARTS_AT_ONCE // schema.shape[0])

    def read() -> list[columns.SmallColumns]:
        with open_file(file) as source:
            stored = pq.ParquetFile(source, metadata=metadata, pre_buffer=True)
            batches = stored.iter_batches(at_once, columns=names, use_threads=False)
            return list(_checked(file.uri, batches, schema))

    return columns.joined(file.uri, _undamaged(file.uri, read))


def _check_lists(uri: str, metadata: pq.FileMetaData, schema: Schema) -> None:
    """Lists are not read where they are longer than any may be: a few bytes can stand for many."""
    if schema.task == "classes":
        return
    name, most = "labels", len(schema.classes)
    if schema.task == "parts":
        name, most = "parts", schema.shape[0]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        stored = next(
            column
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema.partition(".")[0] == name
        )
        if stored.num_values > most * group.num_rows:
            raise DataError(
                f"{uri}: column {name!r}: row group {number} has {stored.num_values:,} values in "
                f"{group.num_rows:,} rows, but a row has at most {most}; write it anew"
            )


def _checked(
    path: str, batches: Iterator[pa.RecordBatch], schema: Schema
) -> Iterator[columns.SmallColumns]:
    first = 0
    for batch in batches:
        yield columns.check(path, batch, schema, first)
        first += batch.num_rows


def _check_ids(table: Table) -> None:
    """No id stands twice. Ids are compared where their hashes are equal, and are not kept."""
    order = np.argsort(table.id_hashes, kind="stable")
    ordered = table.id_hashes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    several = np.flatnonzero(ends - starts > 1)
    for run in several[np.argsort(order[starts[several] + 1])]:  # the first repeat first
        alike = order[starts[run] : ends[run]]
        seen: dict[str, int] = {}
        for row, key in zip(alike.tolist(), table.ids(alike), strict=True):
            if key in seen:
                raise _twice(table, seen[key], row, key)
            seen[key] = row


def _twice(table: Table, before: int, row: int, key: str) -> DataError:
    part, other = table.part_of(row), table.part_of(before)
    elsewhere = "" if other is part else f" of {other.file.name}"
    return DataError(
        f"{part.file.uri}: column 'id', row {row - part.first} (id {key!r}): also the id of row "
        f"{before - other.first}{elsewhere}; ids are unique"
    )


def _undamaged(path: str, read: Callable[[], T]) -> T:
    try:
        return asked(path, read)
    except (DataError, DataAway):
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); fetch or write the file again") from error


def _check_group_bytes(uri: str, group: int, size: int) -> None:
    """Row groups are read as a whole: one that would fill the memory is not begun."""
    if size > LARGEST_GROUP_BYTES:
        raise DataError(
            f"{uri}: row group {group} has {size:,} bytes once it is unpacked, and may have "
            f"{LARGEST_GROUP_BYTES:,}; write it with smaller row groups"
        )


def _has_dictionary(metadata: pq.FileMetaData, group: int, name: str) -> bool:
    """Whether values of a column are stored once and named by number: unpacked size is no bound."""
    stored = metadata.row_group(group)
    columns_of = map(stored.column, range(stored.num_columns))
    column = next(one for one in columns_of if one.path_in_schema == name)
    return bool(column.has_dictionary_page and column.physical_type == "BYTE_ARRAY")


def _written_out(uri: str, group: int, column: pa.Array) -> pa.Array:
    """Every value of a column that may hold each different one once."""
    if not isinstance(column, pa.DictionaryArray):
        return column
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    _check_group_bytes(uri, group, pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    return column.dictionary_decode()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)

"""Reading data sets from Parquet files: first the small columns, then the samples.

A file has the columns `id` (string), `split` (`train` or `test`), `label` (integer),
`label_name` (string) and `data` (the little-endian bytes of one sample), and a JSON object under
the schema metadata key `dataset`. Rows are numbered from 0 in messages.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2pt.data.schema import DataError, Schema, parse

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class FileIndex:
    """All of one file but its samples. `sha256` is of the file's bytes."""

    path: str
    schema: Schema
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[int, ...]
    sha256: str

    def rows(self, split: str) -> list[int]:
        """Numbers of the rows of one split, ascending."""
        return [row for row, name in enumerate(self.splits) if name == split]


def stamp(path: str) -> tuple[str, int, int]:
    """Path, size and time of change: what a cache of the file's content is keyed by.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"{path}: {what}; name a Parquet file that this machine can read")
    status = file.stat()
    return path, status.st_size, status.st_mtime_ns


def read_index(path: str) -> FileIndex:
    """The checked index of a file; read once per process as long as the file does not change.

    Raises:
        DataError: no Parquet file, a column is missing or of another type, or a row breaks a rule.
    """
    return _read_index(*stamp(path))


@lru_cache(maxsize=16)
def _read_index(path: str, size_bytes: int, changed_ns: int) -> FileIndex:
    schema = _checked_schema(path)
    table = _table(path, ["id", "split", "label", "label_name"])
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    _check_rows(path, schema, columns)
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileIndex(
        path=path,
        schema=schema,
        ids=tuple(columns["id"]),
        splits=tuple(columns["split"]),
        labels=tuple(columns["label"]),
        sha256=digest,
    )


def read_samples(index: FileIndex, rows: Sequence[int]) -> npt.NDArray[np.generic]:
    """The samples of the rows `rows` (ascending), of shape (len(rows), *schema.shape).

    Raises:
        DataError: a sample has another length than its schema says, or holds a value that is
            not finite.
    """
    schema = index.schema
    dtype = np.dtype(schema.dtype).newbyteorder("<")
    samples = np.empty((len(rows), *schema.shape), dtype=schema.dtype)
    wanted, done, first = np.asarray(rows, dtype=np.int64), 0, 0
    for batch in pq.ParquetFile(index.path).iter_batches(batch_size=512, columns=["data"]):
        here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
        column = batch.column(0)
        _check_lengths(index, column, first)
        values = _joined(column.take(pa.array(here)), schema.sample_bytes)
        samples[done : done + len(here)] = values.view(dtype).reshape(len(here), *schema.shape)
        done, first = done + len(here), first + batch.num_rows
    _check_finite(index, samples, wanted)
    return samples


def _checked_schema(path: str) -> Schema:
    try:
        arrow = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); write it again") from error
    kinds = {
        "id": (_is_text, "a string"),
        "split": (_is_text, "a string, train or test"),
        "label": (pa.types.is_integer, "an integer"),
        "label_name": (_is_text, "a string"),
        "data": (_is_bytes, "binary: the little-endian bytes of one sample"),
    }
    for name, (fits, rule) in kinds.items():
        if name not in arrow.names:
            raise DataError(f"{path}: no column {name!r}; add it, {rule}")
        if not fits(arrow.field(name).type):
            found = arrow.field(name).type
            raise DataError(f"{path}: column {name!r} is {found}; write it as {rule}")
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
    return parse(declared, path)


def _table(path: str, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); fetch or write the file again") from error


def _check_rows(path: str, schema: Schema, columns: dict[str, list[object]]) -> None:
    for name, values in columns.items():
        if None in values:
            row = values.index(None)
            raise DataError(f"{path}: column {name!r}, row {row}: empty; fill it or drop the row")
    seen: dict[object, int] = {}
    for row, (key, split, label, name) in enumerate(zip(*columns.values(), strict=True)):
        where = f"row {row} (id {key!r})"
        if key in seen:
            raise DataError(
                f"{path}: column 'id', {where}: also the id of row {seen[key]}; ids are unique"
            )
        seen[key] = row
        if split not in _SPLITS:
            raise DataError(f"{path}: column 'split', {where}: train or test, but it is {split!r}")
        if not isinstance(label, int) or not 0 <= label < len(schema.classes):
            raise DataError(
                f"{path}: column 'label', {where}: 0 to {len(schema.classes) - 1}, since `dataset` "
                f"lists {len(schema.classes)} classes, but it is {label!r}"
            )
        if name != schema.classes[label]:
            raise DataError(
                f"{path}: column 'label_name', {where}: label {label} is "
                f"{schema.classes[label]!r} in `dataset`, but it is {name!r} here"
            )


def _check_lengths(index: FileIndex, column: pa.Array, first: int) -> None:
    wanted = index.schema.sample_bytes
    lengths = np.asarray(pc.fill_null(pc.binary_length(column), -1))
    wrong = np.flatnonzero(lengths != wanted)
    if len(wrong):
        row = first + int(wrong[0])
        found = int(lengths[wrong[0]])
        raise DataError(
            f"{index.path}: column 'data', row {row} (id {index.ids[row]!r}): {wanted} bytes for "
            f"{index.schema.dtype} of shape {list(index.schema.shape)}, but it is "
            f"{'empty' if found < 0 else f'{found} bytes'}; put the row or `dataset` right"
        )


def _check_finite(
    index: FileIndex, samples: npt.NDArray[np.generic], rows: npt.NDArray[np.int64]
) -> None:
    if samples.dtype.kind != "f" or not len(samples):
        return
    finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
    if not finite.all():
        row = int(rows[np.flatnonzero(~finite)[0]])
        raise DataError(
            f"{index.path}: column 'data', row {row} (id {index.ids[row]!r}): holds NaN or "
            "infinity; mend or drop the row"
        )


def _joined(column: pa.Array, sample_bytes: int) -> npt.NDArray[np.uint8]:
    """The bytes of all rows, one after the other; every row is known to be of equal length."""
    values = column.buffers()[-1]
    if values is None or not len(column):
        return np.empty(0, dtype=np.uint8)
    start = column.offset * sample_bytes
    if not pa.types.is_fixed_size_binary(column.type):
        width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        start = int(np.frombuffer(column.buffers()[1], dtype=width)[column.offset])
    count = len(column) * sample_bytes
    return np.frombuffer(values, dtype=np.uint8, count=count, offset=start)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )

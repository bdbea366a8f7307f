"""Writing data sets: rows into the bytes of a Parquet file that `parquet` reads.

The same rows make the same bytes. Row groups stay small, so that a reader holds little at a time
and can shuffle well.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

_THREADS = False
"""Arrow's threads would let go of a Python file at the process's end, which may abort it:
https://github.com/apache/arrow/issues/33975."""
GROUP_BYTES = 8 * 1024 * 1024
"""A row group ends with the row that brings its samples to this many bytes."""

_COLUMNS = {
    "id": pa.string(),
    "split": pa.string(),
    "label": pa.int32(),
    "label_name": pa.string(),
    "source_path": pa.string(),
    "data": pa.binary(),
}
_SETTINGS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["split", "label", "label_name", "group"],
    "write_statistics": ["split", "label"],  # of samples they would hold whole samples
}


@dataclass(frozen=True)
class Row:
    """One sample as stored; `data` is what the schema's dtype, shape and encoding say."""

    id: str
    split: Literal["train", "test"]
    label: int
    source_path: str
    data: bytes
    group: str | None = None


def chain(digest: str, rows: Iterable[Row]) -> str:
    """The content digest of all rows so far, from that of the rows before ("" for none).

    Each row in turn is hashed with the digest before it: sha256(before + fields), the fields id,
    split, label (int32) and data each behind its length (8 bytes, little-endian). So the digest
    says what all rows are, in order, however they are cut into files.
    """
    before = bytes.fromhex(digest)
    for row in rows:
        step = hashlib.sha256(before)
        label = row.label.to_bytes(4, "little", signed=True)
        for field in (row.id.encode(), row.split.encode(), label, row.data):
            step.update(len(field).to_bytes(8, "little"))
            step.update(field)
        before = step.digest()
    return before.hex()


def part_bytes(rows: Sequence[Row], declared: Mapping[str, Any]) -> bytes:
    """A Parquet file that holds `rows`; `declared` is its `dataset` object, with its classes.

    Where that has a key `group`, which says what groups are, the file has a column `group`.
    """
    made = io.BytesIO()
    schema = _schema({"dataset": declared}, grouped="group" in declared)
    with pq.ParquetWriter(made, schema, **_SETTINGS) as writer:
        for group in _groups(rows):
            writer.write_table(_table(group, declared["classes"], schema))
    return made.getvalue()


def merge(parts: Iterable[BinaryIO], metadata: Mapping[str, Any], target: Path) -> None:
    """One file of the row groups of all `parts`, in order; one group is in memory at a time.

    `metadata` are JSON objects by schema metadata key, `dataset` among them.
    """
    schema = _schema(metadata, grouped="group" in metadata["dataset"])
    with pq.ParquetWriter(target, schema, **_SETTINGS) as writer:
        for part in parts:
            file = pq.ParquetFile(part)
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, use_threads=_THREADS)
                writer.write_table(group.cast(schema), row_group_size=max(1, len(group)))


def read_rows(file: BinaryIO | Path) -> Iterator[Row]:
    """The rows of a file as they are stored, one row group in memory at a time."""
    stored = pq.ParquetFile(file)
    names = ["id", "split", "label", "source_path", "data", "group"]
    present = [name for name in names if name in stored.schema_arrow.names]
    for number in range(stored.num_row_groups):
        group = stored.read_row_group(number, columns=present, use_threads=_THREADS)
        for row in group.to_pylist():
            yield Row(**{"source_path": ""} | row)


def read_metadata(file: BinaryIO | Path) -> dict[str, Any]:
    """The JSON objects of a file's schema metadata by key; what is no JSON is left out.

    Raises:
        ValueError: no Parquet file (pyarrow's ArrowInvalid is one).
    """
    found: dict[str, Any] = {}
    for key, value in (pq.read_schema(file).metadata or {}).items():
        try:
            found[key.decode()] = json.loads(value)
        except ValueError:
            continue
    return found


def _groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    first, held = 0, 0
    for number, row in enumerate(rows):
        held += len(row.data)
        if held >= GROUP_BYTES:
            yield rows[first : number + 1]
            first, held = number + 1, 0
    if first < len(rows):
        yield rows[first:]


def _table(rows: Sequence[Row], classes: Sequence[str], schema: pa.Schema) -> pa.Table:
    columns = {
        "id": [row.id for row in rows],
        "split": [row.split for row in rows],
        "label": [row.label for row in rows],
        "label_name": [classes[row.label] for row in rows],
        "source_path": [row.source_path for row in rows],
        "data": [row.data for row in rows],
        "group": [row.group for row in rows],
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _schema(metadata: Mapping[str, Any], *, grouped: bool) -> pa.Schema:
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    columns = {**_COLUMNS, "group": pa.string()} if grouped else _COLUMNS
    return pa.schema(list(columns.items()), metadata=texts)

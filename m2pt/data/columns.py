"""The small columns of a table, checked batch by batch: id, split, label, label_name and group.

They are kept as numbers (17 bytes a row), so that a table of millions of rows costs little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from m2pt.data.schema import DataError, Schema

_SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class SmallColumns:
    """Of N rows: labels, whether a row is of the test split, hashes of the ids, each (N,).

    `group` is the names of the groups here and the number of each row's name (N,), or None.
    """

    labels: npt.NDArray[np.int64]
    test: npt.NDArray[np.bool_]
    id_hashes: npt.NDArray[np.int64]
    group: tuple[tuple[str, ...], npt.NDArray[np.int64]] | None


def check(path: str, batch: pa.RecordBatch, schema: Schema, first: int) -> SmallColumns:
    """The rows of one batch; `first` is the number of its first row in the file.

    Raises:
        DataError: a row breaks a rule.
    """
    _check_filled(path, batch, first)
    ids = batch.column("id").to_pylist()
    split, label = batch.column("split"), batch.column("label")

    def fail(column: str, wrong: npt.NDArray[np.bool_], rule: str) -> None:
        if not wrong.any():
            return
        row = int(wrong.argmax())
        found = batch.column(column)[row].as_py()
        told = rule.format(label=label[row].as_py(), name=_name(schema, label[row].as_py()))
        raise DataError(
            f"{path}: column {column!r}, row {first + row} (id {ids[row]!r}): {told} {found!r}"
        )

    known = pc.is_in(split, value_set=pa.array(_SPLITS, split.type))
    fail("split", ~_numpy(known), "train or test, but it is")
    labels, classes = _numpy(label), len(schema.classes)
    rule = f"0 to {classes - 1}, since `dataset` lists {classes} classes, but it is"
    fail("label", (labels < 0) | (labels >= classes), rule)
    named = pa.array(schema.classes, pa.string()).take(label)
    other = _numpy(pc.not_equal(named, batch.column("label_name").cast(pa.string())))
    fail("label_name", other, "label {label} is {name!r} in `dataset`, but here it is")
    return SmallColumns(
        labels=labels.astype(np.int64),
        test=_numpy(pc.equal(split, "test")),
        id_hashes=np.fromiter(map(hash, ids), np.int64, len(ids)),
        group=_group(batch),
    )


def joined(path: str, batches: Sequence[SmallColumns]) -> SmallColumns:
    """The rows of all batches of one file. Raises DataError where there is none."""
    if not batches:
        raise DataError(f"{path}: has no rows; write it again, or leave it out")
    return SmallColumns(
        labels=np.concatenate([batch.labels for batch in batches]),
        test=np.concatenate([batch.test for batch in batches]),
        id_hashes=np.concatenate([batch.id_hashes for batch in batches]),
        group=_joined_groups([batch.group for batch in batches if batch.group is not None]),
    )


def group_numbers(files: Sequence[tuple[str, SmallColumns]]) -> npt.NDArray[np.int64] | None:
    """For each row of all files the number of its group in the order of names, or None.

    Raises:
        DataError: some files have the column `group` and others do not.
    """
    without = [path for path, columns in files if columns.group is None]
    if len(without) == len(files):
        return None
    if without:
        raise DataError(
            f"{without[0]}: no column 'group', but other parts have it; add it, or drop it there"
        )
    together = _joined_groups([columns.group for _, columns in files if columns.group is not None])
    return None if together is None else together[1]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _check_filled(path: str, batch: pa.RecordBatch, first: int) -> None:
    for name in batch.schema.names:
        column = batch.column(name)
        if not column.null_count:
            continue
        row = first + int(_numpy(column.is_null()).argmax())
        remedy = "fill it or drop the row"
        if name == "group":
            remedy = "name the row's group, or drop the column"
        raise DataError(f"{path}: column {name!r}, row {row}: empty; {remedy}")


def _group(batch: pa.RecordBatch) -> tuple[tuple[str, ...], npt.NDArray[np.int64]] | None:
    if "group" not in batch.schema.names:
        return None
    encoded = batch.column("group").dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), _numpy(encoded.indices).astype(np.int64)


def _joined_groups(
    parts: Sequence[tuple[tuple[str, ...], npt.NDArray[np.int64]]],
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]] | None:
    if not parts:
        return None
    names = tuple(sorted({name for known, _ in parts for name in known}))
    number = {name: place for place, name in enumerate(names)}
    numbers = [np.array([number[name] for name in known])[codes] for known, codes in parts]
    return names, np.concatenate(numbers)


def _name(schema: Schema, label: int) -> str:
    return schema.classes[label] if 0 <= label < len(schema.classes) else ""


def _numpy(column: pa.Array) -> npt.NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False))

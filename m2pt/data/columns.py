"""The small columns of a table, checked batch by batch: id, split, group, and those of its labels.

They are kept as numbers (17 bytes a row; with sets of classes 9, and a bit for each class; with
parts 11, and two for each point), so that a table of millions of rows costs little.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from m2pt.data.config import Task, part_bounds
from m2pt.data.labels import packed
from m2pt.data.schema import DataError, Schema

_SPLITS = ("train", "test")
Kinds = dict[str, tuple[Callable[[pa.DataType], bool], str]]
Fail = Callable[[str, npt.NDArray[np.bool_], str], None]
"""Told a column, which rows are wrong (N,), and the rule: refuses the first of them."""


@dataclass(frozen=True, eq=False)
class SmallColumns:
    """Of N rows: labels (N, ...) as `Labels` stores them; (N,) whether a row is of the test split,
    and hashes of the ids.

    `group` is the names of the groups here and the number of each row's name (N,), or None.
    """

    labels: npt.NDArray[Any]
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
    split = batch.column("split")

    def fail(column: str, wrong: npt.NDArray[np.bool_], rule: str) -> None:
        if not wrong.any():
            return
        row = int(wrong.argmax())
        found = batch.column(column)[row].as_py()
        raise DataError(
            f"{path}: column {column!r}, row {first + row} (id {ids[row]!r}): {rule} "
            f"{_short(found)}"
        )

    known = pc.is_in(split, value_set=pa.array(_SPLITS, split.type))
    fail("split", ~_numpy(known), "train or test, but it is")
    read: dict[Task, Callable[[pa.RecordBatch, Schema, Fail], npt.NDArray[Any]]] = {
        "classes": _classes,
        "labels": _sets,
        "parts": _parts,
    }
    return SmallColumns(
        labels=read[schema.task](batch, schema, fail),
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


def _classes(batch: pa.RecordBatch, schema: Schema, fail: Fail) -> npt.NDArray[np.int64]:
    label, classes = batch.column("label"), len(schema.classes)
    labels = _numpy(label)
    rule = f"0 to {classes - 1}, since `dataset` lists {classes} classes, but it is"
    fail("label", (labels < 0) | (labels >= classes), rule)
    named = pa.array(schema.classes, pa.string()).take(label)
    other = _numpy(pc.not_equal(named, batch.column("label_name").cast(pa.string())))
    if other.any():
        wrong = int(labels[other.argmax()])
        rule = f"label {wrong} is {schema.classes[wrong]!r} in `dataset`, but here it is"
        fail("label_name", other, rule)
    return labels.astype(np.int64)


def _sets(batch: pa.RecordBatch, schema: Schema, fail: Fail) -> npt.NDArray[np.uint8]:
    """A set may be empty: a sample of none of the classes."""
    classes = len(schema.classes)
    rows, values = _flat(batch, "labels", fail)
    rule = f"classes from 0 to {classes - 1}, since `dataset` lists {classes}, but it is"
    fail("labels", _rows_with(rows, (values < 0) | (values >= classes), batch), rule)
    sets = np.zeros((batch.num_rows, classes), dtype=np.bool_)
    sets[rows, values] = True
    again = sets.sum(axis=1) != np.bincount(rows, minlength=batch.num_rows)
    fail("labels", again, "each class once, but it is")
    return packed(sets)


def _parts(batch: pa.RecordBatch, schema: Schema, fail: Fail) -> npt.NDArray[np.int16]:
    categories, points = _classes(batch, schema, fail), schema.shape[0]
    rows, values = _flat(batch, "parts", fail)
    counts = np.bincount(rows, minlength=batch.num_rows)
    short = counts != points
    found = counts[short.argmax()]
    fail("parts", short, f"a part for each of the {points} points, but there are {found}:")
    bounds = np.array(part_bounds(schema.parts))
    first, end = bounds[categories][rows], bounds[categories + 1][rows]
    wrong = (values < first) | (values >= end)
    if wrong.any():
        at = int(wrong.argmax())
        rule = (
            f"parts of {schema.classes[categories[rows[at]]]!r} are {first[at]} to {end[at] - 1} "
            f"in `dataset`, but a point has {values[at]}:"
        )
        fail("parts", _rows_with(rows, wrong, batch), rule)
    together = [categories[:, None], values.reshape(-1, points)]
    return np.concatenate(together, axis=1).astype(np.int16)


def _flat(
    batch: pa.RecordBatch, name: str, fail: Fail
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All values of a column of lists, each beside the number of its row."""
    column = batch.column(name)
    values = column.flatten()
    lengths = _numpy(pc.list_value_length(column)).astype(np.int64)
    rows = np.repeat(np.arange(batch.num_rows), lengths)
    if values.null_count:
        rule = "a list of numbers without gaps, but it is"
        fail(name, _rows_with(rows, _numpy(values.is_null()), batch), rule)
    return rows, _numpy(values).astype(np.int64)


def _rows_with(
    rows: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], batch: pa.RecordBatch
) -> npt.NDArray[np.bool_]:
    """Which rows have a value that is wrong."""
    return np.bincount(rows[wrong], minlength=batch.num_rows) > 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _is_lists(kind: pa.DataType) -> bool:
    types = pa.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and types.is_integer(kind.value_type))


_CLASS: Kinds = {
    "label": (pa.types.is_integer, "an integer"),
    "label_name": (is_text, "a string"),
}
LABEL_COLUMNS: dict[Task, Kinds] = {
    "classes": _CLASS,
    "labels": {"labels": (_is_lists, "a list of integers, the row's classes")},
    "parts": {**_CLASS, "parts": (_is_lists, "a list of integers, the part of each point")},
}
"""The columns that tell of a row by the data set's task; of which type, and in words."""


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


def _numpy(column: pa.Array) -> npt.NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False))

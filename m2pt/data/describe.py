"""What a data set is, without reading its samples and without torch."""

import hashlib

import numpy as np

from m2pt.data import embedded
from m2pt.data.config import EMBEDDED, DataConfig, DataInfo, misplaced
from m2pt.data.parquet import Table, read_table
from m2pt.data.schema import DataError

_PREPARATION = 2  # raise it when the way from bytes to prepared samples changes


def describe(config: DataConfig) -> DataInfo:
    """Modality, shape, classes and digest of the data that `config` names.

    All columns but the samples themselves are read and checked; a second call on files that have
    not changed reads nothing but their names, sizes and times.

    Raises:
        DataError: the data is not there or cannot be used, or is augmented as another modality is.
        DataAway: the server that has it cannot be reached.
    """
    if config.source in EMBEDDED:
        schema, digest = embedded.SCHEMAS[config.source], embedded.digest(config.source)
    else:
        found = tables(config)
        schema = found[0].schema
        told = f"m2pt data {_PREPARATION} " + " ".join(table.digest for table in found)
        digest = hashlib.sha256(told.encode()).hexdigest()
    if why := misplaced(config, schema.modality):
        raise DataError(why)
    return DataInfo(
        modality=schema.modality,
        shape=schema.prepared_shape,
        classes=len(schema.classes),
        class_names=schema.classes,
        digest=digest,
        task=schema.task,
        parts=schema.parts,
    )


def tables(config: DataConfig) -> tuple[Table, ...]:
    """The table with the training rows, and the one with the test rows where it is another one.

    Raises:
        DataError: there are no training rows or no test rows, or the two tables do not fit.
        DataAway: the server that has them cannot be reached.
    """
    first = read_table(config.source)
    if first.test.all():
        raise DataError(
            f"{first.place.uri}: no row has split 'train'; name the training data as `source`"
        )
    if config.test_source is None:
        if not first.test.any():
            raise DataError(
                f"{first.place.uri}: no row has split 'test', and there is no `test_source`; name "
                "a second Parquet file with test rows as `test_source`"
            )
        _check_sets(first, first)
        return (first,)
    second = read_table(config.test_source)
    _check_pair(first, second)
    _check_sets(first, second)
    return (first, second)


def _check_pair(first: Table, second: Table) -> None:
    ours, theirs = first.place.uri, second.place.uri
    if first.test.any():
        raise DataError(f"{ours}: has test rows of its own; leave out `test_source` ({theirs})")
    if not second.test.any():
        raise DataError(
            f"{theirs}: no row has split 'test'; name the file with the test rows as `test_source`"
        )
    for key in ("modality", "dtype", "shape", "classes", "sample_rate", "task", "parts"):
        wanted, found = getattr(first.schema, key), getattr(second.schema, key)
        if wanted != found:
            raise DataError(
                f"{theirs}: `dataset`, key {key!r}: as in {ours} ({wanted!r}), but it is {found!r}"
            )
    _check_apart(first, second)


def _check_sets(train: Table, test: Table) -> None:
    """Sets may be empty, but mean average precision needs a class to be found on each side."""
    if train.schema.task != "labels":
        return
    if train.labels.chosen(train.rows("train")).counts().max() < 2:
        raise DataError(
            f"{train.place.uri}: column 'labels': no class has two training rows, one of them to "
            "validate on; give more rows"
        )
    if not test.labels.chosen(test.rows("test")).counts().any():
        raise DataError(
            f"{test.place.uri}: column 'labels': every test row's set is empty, so nothing can be "
            "tested; give test rows of some class"
        )


def _check_apart(first: Table, second: Table) -> None:
    """No test row is a training row: ids are compared where their hashes are equal."""
    test = second.rows("test")
    alike = test[np.isin(second.id_hashes[test], first.id_hashes)]
    for row, key in zip(alike.tolist(), second.ids(alike), strict=True):
        known = np.flatnonzero(first.id_hashes == hash(key))
        if key in first.ids(known):
            part = second.part_of(row)
            raise DataError(
                f"{part.file.uri}: column 'id', row {row - part.first}: {key!r} is also a training "
                f"row of {first.place.uri}; a test row must not be trained on"
            )

"""What a data set is, without reading its samples and without torch."""

import hashlib

from m2pt.data import embedded
from m2pt.data.config import EMBEDDED, DataConfig, DataInfo
from m2pt.data.parquet import FileIndex, read_index
from m2pt.data.schema import DataError

_PREPARATION = 1  # raise it when the way from bytes to prepared samples changes


def describe(config: DataConfig) -> DataInfo:
    """Modality, shape, classes and digest of the data that `config` names.

    All columns but the samples themselves are read and checked; a second call on files that have
    not changed reads nothing.

    Raises:
        DataError: the data is not there or cannot be used.
    """
    if config.source in EMBEDDED:
        schema, digest = embedded.SCHEMAS[config.source], embedded.digest(config.source)
    else:
        files = parquet_files(config)
        schema = files[0].schema
        told = f"m2pt data {_PREPARATION} " + " ".join(file.sha256 for file in files)
        digest = hashlib.sha256(told.encode()).hexdigest()
    return DataInfo(
        modality=schema.modality,
        shape=schema.prepared_shape,
        classes=len(schema.classes),
        class_names=schema.classes,
        digest=digest,
    )


def parquet_files(config: DataConfig) -> tuple[FileIndex, ...]:
    """The index of the training file, and of the file with the test rows where it is another one.

    Raises:
        DataError: there are no training rows or no test rows, or the two files do not fit.
    """
    first = read_index(config.source)
    if not first.rows("train"):
        raise DataError(
            f"{first.path}: no row has split 'train'; name the training file as `source`"
        )
    if config.test_source is None:
        if not first.rows("test"):
            raise DataError(
                f"{first.path}: no row has split 'test', and there is no `test_source`; name a "
                "second Parquet file with test rows as `test_source`"
            )
        return (first,)
    second = read_index(config.test_source)
    _check_pair(first, second)
    return (first, second)


def _check_pair(first: FileIndex, second: FileIndex) -> None:
    if first.rows("test"):
        raise DataError(
            f"{first.path}: has test rows of its own; leave out `test_source` ({second.path})"
        )
    if not second.rows("test"):
        raise DataError(
            f"{second.path}: no row has split 'test'; name the file with the test rows as "
            "`test_source`"
        )
    for key in ("modality", "dtype", "shape", "classes", "sample_rate"):
        ours, theirs = getattr(first.schema, key), getattr(second.schema, key)
        if ours != theirs:
            raise DataError(
                f"{second.path}: `dataset`, key {key!r}: as in {first.path} ({ours!r}), "
                f"but it is {theirs!r}"
            )
    known = {first.ids[row] for row in first.rows("train")}
    for row in second.rows("test"):
        if second.ids[row] in known:
            raise DataError(
                f"{second.path}: column 'id', row {row}: {second.ids[row]!r} is also a training "
                f"row of {first.path}; a test row must not be trained on"
            )

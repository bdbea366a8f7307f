"""From a `DataConfig` to a data set, in memory or streamed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2pt.data import embedded, labels
from m2pt.data.augment import Augmentation
from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.decode import collect, fetch, read_samples
from m2pt.data.describe import describe, tables
from m2pt.data.labels import Labels
from m2pt.data.parquet import Rows, Table
from m2pt.data.prepare import Normalisation, Prepared, prepare, prepared_bytes, statistics
from m2pt.data.samples import Dataset, Samples, TensorSamples
from m2pt.data.schema import DataError
from m2pt.data.split import hold_out, hold_out_groups
from m2pt.data.stream import StreamedSamples

__all__ = ["Dataset", "Samples", "describe", "load"]

STREAMED_BYTES = 1024**3
"""A data set whose prepared samples take more memory is streamed."""
_WINDOW_BYTES = 512 * 1024**2
_LARGEST_GROUP_BYTES = 1024**3
_PART_OF_STATISTICS = 64  # samples at a time
_SAMPLE_GROUPS, _SAMPLE_ROWS = (
    32,
    1024,
)  # of the row groups and rows that streamed data is scaled by

MakeSamples = Callable[..., Samples]


@dataclass(frozen=True)
class _Content:
    """All N rows of a data set: prepared samples, labels, test rows (N,)."""

    prepared: Prepared
    labels: Labels
    test: Tensor


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names, split into train, validation and test.

    Data whose prepared samples fit into a GiB is kept in memory; a full permutation orders each
    epoch. The two data sets used last are kept in the process and shared, so a second trial on the
    same data does not read it again. Larger data, and all data with `config.window`, is streamed
    (`stream`, `order.windowed`); its mean and standard deviation are those of up to 1,024 training
    samples from 32 row groups, drawn with a fixed seed.

    Raises:
        DataError: the data is not there or cannot be used; the message names file, column and row.
        DataAway: the server that has it cannot be reached.
    """
    if config.source in EMBEDDED:
        return _dataset(config)
    return _dataset(config, *tables(config))


@lru_cache(maxsize=2)
def _dataset(config: DataConfig, *found: Table) -> Dataset:
    window = _window(config, found) if found else None
    if window is not None:
        return _streamed(config, found, window)
    content = _parquet_content(*found) if found else _embedded_content(config.source)
    groups = found[0].groups if found else None
    train = torch.nonzero(~content.test).flatten()
    strata = content.labels.chosen(train.numpy()).strata
    kept, held = _kept_and_held(config, strata, _at(groups, train.numpy()))
    rows = {"train": train[kept][: config.limit], "validation": train[held]}
    rows["test"] = torch.nonzero(content.test).flatten()
    parts = _in_parts(content.prepared, train[kept])
    make = partial(TensorSamples, content.prepared, content.labels)
    return _assembled(config, parts, lambda split, **more: make(rows=rows[split], **more))


def _streamed(config: DataConfig, found: tuple[Table, ...], window: int) -> Dataset:
    _check_row_groups(found)
    first, last = found[0], found[-1]
    train = first.rows("train")
    kept, held = _kept_and_held(config, first.labels.chosen(train).strata, _at(first.groups, train))
    places = {
        "train": (first, train[kept][: config.limit]),
        "validation": (first, train[held]),
        "test": (last, last.rows("test")),
    }
    return _assembled(
        config,
        _sample_of(first, train[kept]),
        lambda split, **more: StreamedSamples(*places[split], window=window, **more),
    )


def _assembled(config: DataConfig, parts: Iterator[Prepared], make: MakeSamples) -> Dataset:
    info = describe(config)
    make = partial(make, info=info)
    normalisation = Normalisation((0.0,), (1.0,))
    if info.modality != "point":
        normalisation = statistics(parts)
    augmentation = None
    if config.augment != "none":
        augmentation = Augmentation(config, info.modality, normalisation, info.task)
    return Dataset(
        info=info,
        train=make("train", normalisation=normalisation, augmentation=augmentation),
        validation=make("validation", normalisation=normalisation),
        test=make("test", normalisation=normalisation),
        normalisation=normalisation,
    )


def _in_parts(prepared: Prepared, rows: Tensor) -> Iterator[Prepared]:
    for first in range(0, len(rows), _PART_OF_STATISTICS):
        yield prepared.chosen(rows[first : first + _PART_OF_STATISTICS])


def _window(config: DataConfig, found: tuple[Table, ...]) -> int | None:
    """How many samples are mixed at a time, or None to keep them all in memory."""
    each = prepared_bytes(found[0].schema)
    whole = each * sum(len(table.labels) for table in found)
    if config.window is None and whole <= STREAMED_BYTES:
        return None
    return config.window or max(1, _WINDOW_BYTES // each)


def _check_row_groups(found: tuple[Table, ...]) -> None:
    for table in found:
        for part in table.parts:
            for number in range(part.metadata.num_row_groups):
                group = part.metadata.row_group(number)
                if group.total_byte_size > _LARGEST_GROUP_BYTES:
                    raise DataError(
                        f"{part.file.uri}: row group {number} has {group.total_byte_size} bytes, "
                        f"but data that is streamed may have {_LARGEST_GROUP_BYTES}, since whole "
                        "row groups are held in memory; write it with smaller ones (pyarrow: "
                        "row_group_size), or with `orchestrator data import`"
                    )


def _sample_of(table: Table, rows: Rows) -> Iterator[Prepared]:
    """Up to 1,024 of `rows` from up to 32 row groups, drawn with a fixed seed."""
    draw = np.random.default_rng(0)
    groups = np.unique(table.group_of(rows))
    chosen = draw.permutation(groups)[:_SAMPLE_GROUPS]
    for group in chosen.tolist():
        first, end = np.searchsorted(rows, table.starts[group : group + 2]).tolist()
        wanted = draw.permutation(rows[first:end])[: _SAMPLE_ROWS // len(chosen)]
        wanted.sort()
        yield prepare(collect(table, {group: fetch(table, group, wanted)}, wanted), table.schema)


def _kept_and_held(
    config: DataConfig, labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which training rows are trained on and which are held out; by group where there are any."""
    if groups is None:
        held = hold_out(labels, config.validation, config.validation_seed)
        return ~held, held
    held = hold_out_groups(labels, groups, config.validation, config.validation_seed)
    if not held.any():
        raise DataError(
            f"{config.source}: column 'group': no group can be held out for validation without "
            "taking the last training row of a class; drop the column, or make smaller groups"
        )
    return ~held, held


def _at(
    groups: npt.NDArray[np.int64] | None, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64] | None:
    return None if groups is None else groups[rows]


@lru_cache(maxsize=4)
def _embedded_content(name: str) -> _Content:
    made = embedded.generate(name)
    return _Content(
        prepare(made.samples, made.schema),
        made.labels,
        torch.from_numpy(made.test),
    )


@lru_cache(maxsize=2)
def _parquet_content(*found: Table) -> _Content:
    rows = [np.arange(len(found[0].labels)), *(table.rows("test") for table in found[1:])]
    samples = [read_samples(table, chosen) for table, chosen in zip(found, rows, strict=True)]
    chosen = list(zip(found, rows, strict=True))
    return _Content(
        prepare(samples[0] if len(samples) == 1 else np.concatenate(samples), found[0].schema),
        labels.joined([table.labels.chosen(rows) for table, rows in chosen]),
        torch.from_numpy(np.concatenate([table.test[rows] for table, rows in chosen])),
    )

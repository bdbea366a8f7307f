"""From a `DataConfig` to a data set in memory."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from m2pt.data import embedded
from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.describe import describe, parquet_files
from m2pt.data.parquet import read_samples, stamp
from m2pt.data.prepare import Normalisation, Prepared, prepare
from m2pt.data.samples import Dataset, Samples, TensorSamples
from m2pt.data.split import hold_out

__all__ = ["Dataset", "Samples", "describe", "load"]


@dataclass(frozen=True)
class _Content:
    """All rows of a data set: prepared samples, labels (N,), test rows (N,)."""

    prepared: Prepared
    labels: Tensor
    test: Tensor


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names, split into train, validation and test.

    The prepared samples of the two data sets used last are kept in the process and shared, so a
    second trial on the same data does not read it again.

    Raises:
        DataError: the data is not there or cannot be used; the message names file, column and row.
    """
    if config.source in EMBEDDED:
        return _dataset(config)
    second = config.test_source
    return _dataset(config, stamp(config.source), stamp(second) if second else None)


@lru_cache(maxsize=2)
def _dataset(config: DataConfig, *stamps: tuple[str, int, int] | None) -> Dataset:
    info = describe(config)
    content = _parquet_content(*stamps) if stamps else _embedded_content(config.source)
    train_rows = torch.nonzero(~content.test).flatten()
    held = hold_out(content.labels[train_rows].numpy(), config.validation, config.validation_seed)
    kept, validation = train_rows[torch.from_numpy(~held)], train_rows[torch.from_numpy(held)]
    if info.modality == "point":
        normalisation = Normalisation((0.0,), (1.0,))
    else:
        normalisation = content.prepared.statistics(kept)

    def samples(rows: Tensor, *, augmented: bool = False) -> TensorSamples:
        return TensorSamples(
            content.prepared,
            content.labels,
            rows=rows,
            normalisation=normalisation,
            augmented=info.modality if augmented else None,
        )

    return Dataset(
        info=info,
        train=samples(kept[: config.limit], augmented=config.augment),
        validation=samples(validation),
        test=samples(torch.nonzero(content.test).flatten()),
        normalisation=normalisation,
    )


@lru_cache(maxsize=4)
def _embedded_content(name: str) -> _Content:
    made = embedded.generate(name)
    return _Content(
        prepare(made.samples, made.schema),
        torch.from_numpy(made.labels),
        torch.from_numpy(made.test),
    )


@lru_cache(maxsize=2)
def _parquet_content(*stamps: tuple[str, int, int] | None) -> _Content:
    source, test_source = (stamp[0] if stamp else None for stamp in stamps)
    config = DataConfig(source or "", test_source=test_source)
    files = parquet_files(config)
    rows = [list(range(len(files[0].splits))), *(file.rows("test") for file in files[1:])]
    samples = [read_samples(file, chosen) for file, chosen in zip(files, rows, strict=True)]
    labels = [file.labels[row] for file, chosen in zip(files, rows, strict=True) for row in chosen]
    test = [
        file.splits[row] == "test"
        for file, chosen in zip(files, rows, strict=True)
        for row in chosen
    ]
    joined = samples[0] if len(samples) == 1 else np.concatenate(samples)
    return _Content(prepare(joined, files[0].schema), torch.tensor(labels), torch.tensor(test))

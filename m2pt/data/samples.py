"""One split of a data set, ready to be cut into batches."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from m2pt.data.augment import Augmentation
from m2pt.data.config import DataInfo
from m2pt.data.draws import Draws
from m2pt.data.labels import Labels
from m2pt.data.order import permutation
from m2pt.data.prepare import Normalisation, Prepared, Scaling

Batch = tuple[Tensor, Tensor]
"""Samples (B, *shape) float32 and what is told of them, both fresh tensors on the CPU.

That is, by `DataInfo.task`: the classes (B,) int64; sets of classes (B, classes) uint8, 1 where a
sample is of a class; or (B, 1 + points) int64, a cloud's category and then the part of each point.
"""


class Readable(Protocol):
    """Labelled samples that are read in pieces."""

    @property
    def info(self) -> DataInfo:
        """Of the data set that they are from; says what the labels are."""

    @property
    def labels(self) -> Tensor:
        """Of all samples, (N, ...), as in a `Batch`."""

    def __len__(self) -> int: ...

    def stream(
        self,
        pieces: Sequence[Tensor],
        *,
        epoch: int | None = None,
        seed: int = 0,
        views: int = 1,
        workers: int = 0,
    ) -> Generator[Batch, None, None]:
        """The samples of each piece (B,) int64 in turn.

        With `epoch` the training view: augmented where the configuration asks for it, by
        (seed, epoch, index) alone; with several `views` that many of it, one after the other,
        (views · B). Without it the samples as they are. `workers` threads may read
        ahead; they change no value. Close the iterator to end them early.
        """


class Samples(Readable, Protocol):
    """Labelled samples that are also read by number, and know a good order for an epoch."""

    def batch(
        self, indices: Sequence[int] | Tensor, *, epoch: int | None = None, seed: int = 0
    ) -> Batch:
        """One piece, as `stream` gives it."""

    def order(self, seed: int) -> Tensor:
        """All samples once, shuffled, (N,) int64: a function of `seed` and the data alone."""


class First:
    """The first samples of a split, or all where there are fewer: no others are read."""

    def __init__(self, samples: Readable, count: int) -> None:
        self._samples = samples
        self._count = min(count, len(samples))

    @property
    def info(self) -> DataInfo:
        return self._samples.info

    @property
    def labels(self) -> Tensor:
        return self._samples.labels[: self._count]

    def __len__(self) -> int:
        return self._count

    def stream(self, pieces: Sequence[Tensor], **view: Any) -> Generator[Batch, None, None]:
        return self._samples.stream(pieces, **view)


@dataclass(frozen=True)
class Dataset:
    """A data set. `normalisation` was measured on training samples alone."""

    info: DataInfo
    train: Samples
    validation: Samples
    test: Samples
    normalisation: Normalisation


class TensorSamples:
    """Samples cut from one tensor that all splits share; nothing here writes to it."""

    def __init__(
        self,
        prepared: Prepared,
        labels: Labels,
        *,
        info: DataInfo,
        rows: Tensor,
        normalisation: Normalisation,
        augmentation: Augmentation | None = None,
    ) -> None:
        """`labels` (all rows) and `rows` (N,) int64: which rows of `prepared` are this split.

        `augmentation` is what the training view changes, or None for nothing.
        """
        self.info = info
        self._labels = labels.chosen(rows.numpy())
        self._data = prepared.data
        self._rows = rows
        self._augmentation = augmentation
        self._scaled = Scaling(normalisation, prepared.full_scale, prepared.data.ndim)

    @property
    def labels(self) -> Tensor:
        """See `Readable.labels`."""
        return torch.from_numpy(self._labels.at(np.arange(len(self))))

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, seed: int) -> Tensor:
        """A full permutation."""
        return permutation(len(self), seed)

    def stream(
        self,
        pieces: Sequence[Tensor],
        *,
        epoch: int | None = None,
        seed: int = 0,
        views: int = 1,
        workers: int = 0,
    ) -> Generator[Batch, None, None]:
        """See `Readable.stream`; cutting them out is quicker than handing them to a thread."""
        del workers
        for piece in pieces:
            yield self._batch(piece, epoch, seed, views)

    def batch(
        self, indices: Sequence[int] | Tensor, *, epoch: int | None = None, seed: int = 0
    ) -> Batch:
        """See `Samples.batch`."""
        return self._batch(torch.as_tensor(indices, dtype=torch.int64), epoch, seed, 1)

    def _batch(self, chosen: Tensor, epoch: int | None, seed: int, views: int) -> Batch:
        batch = self._scaled(self._data[self._rows[chosen]])
        if epoch is not None and self._augmentation is not None:
            drawn = view_draws(seed, epoch, chosen, views)
            batch = seen_as(batch, self._augmentation, drawn)
        return batch, told_again(torch.from_numpy(self._labels.at(chosen.numpy())), len(batch))


def view_draws(seed: int, epoch: int, indices: Tensor, views: int) -> list[Draws]:
    """The draws of each view: those of epochs of their own, so that no view is ever seen twice."""
    return [Draws(seed, epoch * views + view, indices) for view in range(views)]


def told_again(labels: Tensor, samples: int) -> Tensor:
    """Labels (B, ...) for all views of a batch, one after the other: (samples, ...)."""
    views = samples // max(1, len(labels))
    return labels if views <= 1 else torch.cat([labels] * views)


def seen_as(batch: Tensor, augmentation: Augmentation, drawn: Sequence[Draws]) -> Tensor:
    """All views of a batch (B, *shape), one after the other: (views · B, *shape)."""
    seen = [augmentation(batch, draws) for draws in drawn]
    return seen[0] if len(seen) == 1 else torch.cat(seen)

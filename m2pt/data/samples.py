"""One split of a data set, ready to be cut into batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from m2pt.data.augment import augment, uniform_draws
from m2pt.data.config import DataInfo, Modality
from m2pt.data.prepare import Normalisation, Prepared


class Samples(Protocol):
    """Labelled samples that are read by number."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    def __len__(self) -> int: ...

    def batch(
        self, indices: Sequence[int] | Tensor, *, epoch: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Samples (B, *shape) float32 and labels (B,) int64, both fresh tensors on the CPU.

        With `epoch` the training view: augmented where the configuration asks for it, by
        (seed, epoch, index) alone. Without it the samples as they are.
        """


@dataclass(frozen=True)
class Dataset:
    """A data set in memory. `normalisation` was measured on the training samples alone."""

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
        labels: Tensor,
        *,
        rows: Tensor,
        normalisation: Normalisation,
        augmented: Modality | None = None,
    ) -> None:
        """`labels` (all rows) and `rows` (N,) int64: which rows of `prepared` are this split.

        `augmented` is the modality whose changes the training view makes, or None for none.
        """
        self.labels = labels[rows]
        self._data = prepared.data
        self._rows = rows
        self._augmented = augmented
        shape = (1, -1, *[1] * (prepared.data.ndim - 2))
        if len(normalisation.mean) == 1:
            shape = (1,) * prepared.data.ndim
        mean, std = (torch.tensor(values).view(shape) for values in _pair(normalisation))
        self._gain = 1 / (std * prepared.full_scale)
        self._offset = -mean / std

    def __len__(self) -> int:
        return len(self._rows)

    def batch(
        self, indices: Sequence[int] | Tensor, *, epoch: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """See `Samples.batch`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        batch = self._data[self._rows[chosen]].to(torch.float32)
        batch = batch.mul_(self._gain).add_(self._offset)
        if epoch is not None and self._augmented is not None:
            batch = augment(batch, self._augmented, uniform_draws(seed, epoch, chosen))
        return batch, self.labels[chosen]


def _pair(normalisation: Normalisation) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return normalisation.mean, normalisation.std

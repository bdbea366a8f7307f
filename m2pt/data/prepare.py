"""Samples as stored -> one tensor that batches are cut from, of a whole data set or of a batch.

N: samples. Images and videos stay in their stored type (a quarter of the memory of float32) and
become float32 batch by batch; waveforms become log-mel frames and point clouds are put into the
unit sphere, once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2pt.data.audio import log_mel
from m2pt.data.schema import FrontEnd, Schema

_FULL_SCALE = {"uint8": 255.0, "int16": 32768.0}


@dataclass(frozen=True)
class Normalisation:
    """A prepared sample is `(x - mean) / std`, per channel.

    x is a pixel in [0, 1], a log-mel value, or a coordinate in the unit sphere (there mean 0 and
    std 1: coordinates stay as they are). Whoever feeds an exported model needs these two.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Prepared:
    """`data` (N, *prepared shape); a value of it is `1 / full_scale` of the unit of `x`."""

    data: Tensor
    full_scale: float

    def chosen(self, rows: Tensor) -> "Prepared":
        """The samples `rows` (n,) alone."""
        return Prepared(self.data[rows], self.full_scale)


class Scaling:
    """Brings values as they are prepared to mean 0 and deviation 1."""

    def __init__(self, normalisation: Normalisation, full_scale: float, axes: int) -> None:
        """`axes` of a batch of prepared samples, the batch's own included."""
        shape = (1, -1, *[1] * (axes - 2))
        if len(normalisation.mean) == 1:
            shape = (1,) * axes
        mean = torch.tensor(normalisation.mean).view(shape)
        std = torch.tensor(normalisation.std).view(shape)
        self._gain, self._offset = 1 / (std * full_scale), -mean / std

    def __call__(self, prepared: Tensor) -> Tensor:
        """A fresh float32 tensor of the same shape."""
        return prepared.to(torch.float32, copy=True).mul_(self._gain).add_(self._offset)


def statistics(parts: Iterable[Prepared]) -> Normalisation:
    """Mean and standard deviation per channel (axis 1) over the samples of all parts."""
    moments, count, full_scale = torch.zeros(1, 2, dtype=torch.float64), 0, 1.0
    for part in parts:
        moments = moments + _moments(part.data.transpose(0, 1))
        count += len(part.data) * part.data[0, 0].numel()
        full_scale = part.full_scale
    mean = moments[:, 0] / count
    variance = (moments[:, 1] / count - mean**2).clamp(min=0)
    std = (variance.sqrt() / full_scale).clamp(min=1e-4)  # a flat channel stays flat
    return Normalisation(_rounded(mean / full_scale), _rounded(std))


def prepared_bytes(schema: Schema) -> int:
    """Memory of one prepared sample."""
    stored = schema.modality in ("image", "video")
    return schema.sample_bytes if stored else 4 * math.prod(schema.prepared_shape)


def prepare(samples: npt.NDArray[np.generic], schema: Schema) -> Prepared:
    """Prepares `samples` (N, *schema.shape) of the type that `schema` says."""
    stored = torch.from_numpy(samples)
    full_scale = _FULL_SCALE.get(schema.dtype, 1.0)
    if schema.modality == "audio":
        waves = stored.float() / full_scale
        frames = log_mel(waves, FrontEnd(schema.sample_rate, schema.shape[0]))
        return Prepared(frames[:, None], 1.0)
    if schema.modality == "point":
        return Prepared(_unit_sphere(stored.float()), 1.0)
    plain = {"image": 3, "video": 4}[schema.modality]
    with_channels = stored if stored.ndim > plain else stored[..., None]
    return Prepared(with_channels.movedim(-1, 1).contiguous(), full_scale)


def _moments(values_CX: Tensor) -> Tensor:
    """Sum and sum of squares per channel, (C, 2) float64.

    Bytes are counted: that is exact and several times faster than summing them.
    """
    flat = values_CX.reshape(len(values_CX), -1)
    if flat.dtype == torch.uint8:
        counts = torch.stack([torch.bincount(row, minlength=256) for row in flat]).double()
        levels = torch.arange(256, dtype=torch.float64)
        return torch.stack([counts @ levels, counts @ levels**2], dim=1)
    wide = flat.double()
    return torch.stack([wide.sum(dim=1), wide.square().sum(dim=1)], dim=1)


def _rounded(values: Tensor) -> tuple[float, ...]:
    """To six digits: sums in another order, as with other thread counts, then change nothing."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def _unit_sphere(points: Tensor) -> Tensor:
    centred = points - points.mean(dim=1, keepdim=True)
    radius = torch.linalg.vector_norm(centred, dim=2, keepdim=True).amax(dim=1, keepdim=True)
    return torch.div(centred, radius.clamp(min=1e-8))

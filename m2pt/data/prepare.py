"""Samples as stored -> one tensor per data set that batches are cut from.

N: samples. Images and videos stay in their stored type (a quarter of the memory of float32) and
become float32 batch by batch; waveforms become log-mel frames and point clouds are put into the
unit sphere, once.
"""

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

    def statistics(self, rows: Tensor) -> Normalisation:
        """Mean and standard deviation per channel (axis 1) over the samples `rows`."""
        moments = torch.stack(
            [_moments(self.data[part].transpose(0, 1)) for part in _parts(rows)]
        ).sum(dim=0)
        count = len(rows) * self.data[0, 0].numel()
        mean = moments[:, 0] / count
        variance = (moments[:, 1] / count - mean**2).clamp(min=0)
        std = (variance.sqrt() / self.full_scale).clamp(min=1e-4)  # a flat channel stays flat
        return Normalisation(_rounded(mean / self.full_scale), _rounded(std))


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


def _parts(rows: Tensor) -> list[Tensor]:
    return [rows[first : first + 64] for first in range(0, len(rows), 64)]


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

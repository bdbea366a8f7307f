"""Light changes to training samples: the same for a sample whatever the batch or worker it is in.

B: batch, C: channels, T: frames, F: mel bands, H, W: height and width, N: points.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2pt.data.config import Modality

_DRAWS = 8


def augment(batch: Tensor, modality: Modality, draws: Tensor) -> Tensor:
    """A changed copy of `batch` (B, *shape); `draws` (B, 8) are uniform in [0, 1).

    image, video: shifted by up to an eighth of the edge, contrast and brightness by a tenth;
    audio: shifted in time by up to a sixteenth, and louder or softer; point: stretched along each
    axis by up to a quarter and moved by up to a tenth. Nothing is mirrored or turned: hands,
    digits and directions of movement would change their meaning.
    """
    if modality == "point":
        stretch = 0.8 * (1.25 / 0.8) ** draws[:, :3]
        return batch * stretch[:, None] + 0.2 * (draws[:, 3:6] - 0.5)[:, None]
    reach = 16 if modality == "audio" else 8
    shifted = _shift(batch, -2, _offsets(draws[:, 0], batch.shape[-2] // reach))
    if modality == "audio":
        return shifted + _each(0.6 * (draws[:, 2] - 0.5), batch)
    shifted = _shift(shifted, -1, _offsets(draws[:, 1], batch.shape[-1] // reach))
    contrast, brightness = 0.9 + 0.2 * draws[:, 2], 0.2 * (draws[:, 3] - 0.5)
    return shifted * _each(contrast, batch) + _each(brightness, batch)


def uniform_draws(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Uniform draws (B, 8), float32, that depend on (seed, epoch, index) alone.

    Counter-based (the output function of SplitMix64): no generator is made per sample, and a
    batch of any make-up costs a few vector operations.
    """
    key = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    counters = indices.numpy().astype(np.uint64)[:, None] * np.uint64(_DRAWS)
    steps = np.add(counters, np.arange(1, _DRAWS + 1), dtype=np.uint64, casting="unsafe")
    mixed = _mix(np.add(key, steps * _GOLDEN, dtype=np.uint64))
    return torch.from_numpy((mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _offsets(draws: Tensor, reach: int) -> Tensor:
    """Whole numbers from -reach to reach."""
    return (draws * (2 * reach + 1)).long() - reach


def _shift(batch: Tensor, axis: int, offsets: Tensor) -> Tensor:
    """Moves each sample along `axis`; what comes in repeats the edge."""
    size = batch.shape[axis]
    places = (torch.arange(size) - offsets[:, None]).clamp_(0, size - 1)
    shape = [1] * batch.ndim
    shape[0], shape[axis] = len(batch), size
    return batch.gather(axis, places.view(shape).expand_as(batch))


def _each(values: Tensor, batch: Tensor) -> Tensor:
    return values.view(-1, *[1] * (batch.ndim - 1))

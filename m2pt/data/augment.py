"""Changes to training samples: the same for a sample whatever the batch or worker it is in.

All arithmetic is element by element and exact to the bit wherever a sample stands in a batch: no
powers, sines or sums over a sample, whose last digit can depend on place and batch size.

B: batch, C: channels, T: frames, F: mel bands, H, W: height and width, N: points.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from m2pt.data.config import DataConfig, Modality, Task
from m2pt.data.draws import Draws
from m2pt.data.prepare import Normalisation

_NUMBERS = 16  # drawn for a sample; some for each of its points or cells come on top
_ORDER, _CELLS, _TIMM = 1, 2, 3  # streams of draws; light has the first, 0


@dataclass(frozen=True)
class Augmentation:
    """How `DataConfig` asks training samples of one modality to be changed."""

    config: DataConfig
    modality: Modality
    normalisation: Normalisation
    task: Task = "classes"

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """A changed copy of the normalised `batch` (B, *shape), float32.

        `standard` draws for images and clips through the process's generators, which it seeds for
        each sample and puts back: call it from the one thread that draws from them.

        Raises:
            ValueError: images have neither 1 nor 3 channels.
        """
        if self.config.augment == "light":
            return _light(batch, self.modality, draws.uniform(8))
        if self.modality == "point":
            return _points(batch, draws, self.config, thin=self.task != "parts")
        if self.modality == "audio":
            return _spectrograms(batch, draws, self.config)
        # timm's transforms come with torchvision, which takes a second to import
        from m2pt.data.augment_timm import Clips, Pictures

        seeds = draws.seeds(stream=_TIMM)
        if self.modality == "image":
            return Pictures(self.config, self.normalisation)(batch, seeds)
        clips = _clips(batch, draws.uniform(_NUMBERS, stream=_ORDER), self.config)
        return Clips(self.config, self.normalisation)(clips, seeds)


def _light(batch: Tensor, modality: Modality, draws: Tensor) -> Tensor:
    """Shifts and gains; nothing is cut away, mirrored or turned. `draws` (B, 8)."""
    if modality == "point":
        stretch = 0.8 + 0.45 * draws[:, :3]
        return batch * stretch[:, None] + 0.2 * (draws[:, 3:6] - 0.5)[:, None]
    reach = 16 if modality == "audio" else 8
    shifted = _shift(batch, -2, _offsets(draws[:, 0], batch.shape[-2] // reach))
    if modality == "audio":
        return shifted + _each(0.6 * (draws[:, 2] - 0.5), batch)
    shifted = _shift(shifted, -1, _offsets(draws[:, 1], batch.shape[-1] // reach))
    contrast, brightness = 0.9 + 0.2 * draws[:, 2], 0.2 * (draws[:, 3] - 0.5)
    return shifted * _each(contrast, batch) + _each(brightness, batch)


def _points(batch: Tensor, draws: Draws, config: DataConfig, *, thin: bool) -> Tensor:
    """Stretched and moved as in Point-BERT; dropped and jittered points as in PointNet++.

    A dropped point falls onto the first one; without `thin` none is, so that each keeps what is
    told of it. `turn`: first turned about z, by any angle.
    """
    strength = config.augment_strength
    numbers = draws.uniform(_NUMBERS, stream=_ORDER)
    if config.turn:
        batch = _turned(batch, numbers[:, 6])
    stretch = 1 + strength * (5 / 6 * numbers[:, :3] - 1 / 3)  # 2/3 to 3/2
    moved = batch * stretch[:, None] + 0.4 * strength * (numbers[:, 3:6] - 0.5)[:, None]
    if not config.noise:
        return moved
    cells = draws.uniform(4 * batch.shape[1], stream=_CELLS).view(len(batch), -1, 4)
    moved = moved + 0.03 * strength * (cells[..., :3] - 0.5)
    if not thin:
        return moved
    dropped = cells[..., 3] < 0.5 * min(1.0, strength) * numbers[:, 7:8]
    return torch.where(dropped[..., None], moved[:, :1], moved)


def _spectrograms(batch: Tensor, draws: Draws, config: DataConfig) -> Tensor:
    """Rolled in time, louder or softer, noisy (as in AST), then masked as in SpecAugment.

    Two stretches of time and two of bands, each of up to a fifth, are set to the mean; of those
    whose width is given there is one.
    """
    strength = config.augment_strength
    numbers = draws.uniform(_NUMBERS, stream=_ORDER)
    frames, bands = batch.shape[-2:]
    places = torch.arange(frames) - _offsets(numbers[:, 0], frames // 2)[:, None]
    places = places.remainder(frames)[:, None, :, None].expand_as(batch)
    changed = batch.gather(-2, places) + _each(strength * (numbers[:, 1] - 0.5), batch)
    if config.noise:
        cells = draws.uniform(batch[0].numel(), stream=_CELLS).view_as(batch)
        changed = changed + _each(0.2 * strength * numbers[:, 2], batch) * (cells - 0.5)
    masked = torch.zeros(len(batch), 1, frames, bands, dtype=torch.bool)
    for most, first in _stretches(config.mask_frames, frames, strength, (3, 5)):
        masked |= _stretch(frames, numbers[:, first : first + 2], most)[:, None, :, None]
    for most, first in _stretches(config.mask_bands, bands, strength, (7, 9)):
        masked |= _stretch(bands, numbers[:, first : first + 2], most)[:, None, None, :]
    return changed.masked_fill(masked, 0.0)


def _stretches(
    width: int | None, size: int, strength: float, firsts: tuple[int, int]
) -> list[tuple[float, int]]:
    """(largest part of `size` places, first of its two draws) of each stretch that is masked."""
    if width is None:
        return [(0.2 * strength, first) for first in firsts]
    return [(width / size, firsts[0])]


def _clips(batch: Tensor, numbers: Tensor, config: DataConfig) -> Tensor:
    """One resized crop and, without RandAugment, one colour change for all frames of a clip.

    The crop has half of the area or more and stays inside; brightness, contrast and saturation
    change by up to two fifths.
    """
    strength = config.augment_strength
    cut_away = min(0.9, 0.5 * strength) if config.crop is None else 1 - config.crop
    channels, frames, height, width = batch.shape[1:]
    area = 1 - cut_away * numbers[:, 0]
    ratio = 1 + min(1.0, strength) * (7 / 12 * numbers[:, 1] - 1 / 4)  # 3/4 to 4/3
    high, wide = (part.sqrt().clamp(max=1.0) for part in (area * ratio, area / ratio))
    flipped = torch.where((numbers[:, 7] < 0.5) & config.mirror, -wide, wide)
    rows = _places(height, high, (1 - high) * (2 * numbers[:, 2] - 1))
    columns = _places(width, flipped, (1 - wide) * (2 * numbers[:, 3] - 1))
    grid = torch.stack(
        [columns[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=3
    )
    flat = batch.reshape(-1, channels * frames, height, width)
    cut = torch.nn.functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    cut = cut.view_as(batch)
    if config.rand_augment is not None:
        return cut
    brighter, contrast, colour = (0.8 * strength * (numbers[:, n] - 0.5) for n in (4, 5, 6))
    grey = cut.mean(dim=1, keepdim=True)
    coloured = grey + (cut - grey) * _each(1 + colour, batch)
    return coloured * _each(1 + contrast, batch) + _each(brighter, batch)


def _turned(batch: Tensor, draws: Tensor) -> Tensor:
    """Points (B, N, 3) turned about z."""
    angles = [2 * math.pi * draw for draw in draws.tolist()]
    cos, sin = (torch.tensor([f(angle) for angle in angles])[:, None] for f in (math.cos, math.sin))
    x, y, z = batch.unbind(dim=2)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=2)


def _places(size: int, part: Tensor, middle: Tensor) -> Tensor:
    """Where `grid_sample` looks (-1 to 1) for each of `size` places of a cut edge, (B, size)."""
    centres = (2 * torch.arange(size) + 1) / size - 1
    return part[:, None] * centres + middle[:, None]


def _stretch(size: int, draws: Tensor, most: float) -> Tensor:
    """Which of `size` places a random stretch of up to `most` of them covers, (B, size)."""
    length = draws[:, 0] * min(1.0, most) * size
    first = draws[:, 1] * (size - length)
    places = torch.arange(size)
    return (places >= first[:, None]) & (places < (first + length)[:, None])


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

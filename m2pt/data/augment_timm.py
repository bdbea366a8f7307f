"""What timm has for pictures: resized crops, RandAugment and random erasing.

timm draws from the generators of the process. Each sample seeds them for itself, and afterwards
they are as they were.

B: batch, C: channels, T: frames, H, W: height and width.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from m2pt.data.prepare import Normalisation

_ERASED = 0.25  # of the samples, as in MAE's and VideoMAE's fine-tuning
_MAGNITUDE = 9  # RandAugment's, likewise: rand-m9-mstd0.5-inc1


class Pictures:
    """Crop of half the area or more, mirrored where asked for, RandAugment, random erasing."""

    def __init__(self, strength: float, normalisation: Normalisation, *, mirror: bool) -> None:
        """`strength` 1 is MAE's fine-tuning but for its crops, which go down to 8 % of the area."""
        self._strength, self._mirror = strength, mirror
        self._mean, self._std = (
            torch.tensor(values)[:, None, None]
            for values in (normalisation.mean, normalisation.std)
        )
        middle = tuple(round(255 * value) for value in normalisation.mean)
        self._change = rand_augment_transform(
            f"rand-m{round(_MAGNITUDE * strength)}-mstd0.5-inc1",
            {"img_mean": middle if len(middle) == 3 else middle[0]},
        )
        self._erase = RandomErasing(_ERASED * min(1.0, strength), mode="pixel", device="cpu")

    def __call__(self, batch: Tensor, seeds: Sequence[int]) -> Tensor:
        """A changed copy of the normalised `batch` (B, C, H, W); one seed per sample.

        Raises:
            ValueError: the pictures have neither 1 nor 3 channels.
        """
        if batch.shape[1] not in (1, 3):
            raise ValueError(
                f"data.augment: standard is for pictures of 1 or 3 channels, not {batch.shape[1]}; "
                "use light"
            )
        crop = RandomResizedCropAndInterpolation(
            tuple(batch.shape[-2:]), scale=(1 - min(0.9, 0.5 * self._strength), 1.0)
        )
        plain = ((batch * self._std + self._mean) * 255).round_().clamp_(0, 255).byte()
        changed = torch.empty_like(batch)
        with _generators_restored():
            for number, seed in enumerate(seeds):
                _seed(seed)
                picture = self._change(self._mirrored(crop(_picture(plain[number]))))
                pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32)) / 255
                values = pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
                changed[number] = self._erase((values - self._mean) / self._std)
        return changed

    def _mirrored(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if self._mirror and random.random() < 0.5 else picture


def erase_clips(batch: Tensor, seeds: Sequence[int], strength: float) -> Tensor:
    """Random erasing in place, in clips (B, C, T, H, W): one rectangle for all frames of a clip.

    `batch` is contiguous; one seed per clip.
    """
    erase = RandomErasing(_ERASED * min(1.0, strength), mode="pixel", device="cpu")
    with _generators_restored():
        for clip, seed in zip(batch, seeds, strict=True):
            _seed(seed)
            erase(clip.view(-1, *clip.shape[2:]))
    return batch


def _picture(pixels_CHW: Tensor) -> Image.Image:
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).squeeze(2).numpy())


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed >> 1)  # it takes 63 bits


@contextmanager
def _generators_restored() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

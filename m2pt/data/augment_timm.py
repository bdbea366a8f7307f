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
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.data.prepare import Normalisation

_ERASED = 0.25  # of the samples, as in MAE's and VideoMAE's fine-tuning
_MAGNITUDE = 9  # RandAugment's, likewise: rand-m9-mstd0.5-inc1


class Pictures:
    """Crop of half the area or more, mirrored where asked for, RandAugment, random erasing."""

    def __init__(self, config: DataConfig, normalisation: Normalisation) -> None:
        """Strength 1 is MAE's fine-tuning but for its crops, which go down to 8 % of the area."""
        strength = config.augment_strength
        spec = config.rand_augment or f"rand-m{round(_MAGNITUDE * strength)}-mstd0.5-inc1"
        self._least = 1 - min(0.9, 0.5 * strength) if config.crop is None else config.crop
        self._mirror = config.mirror
        self._change = _RandAugment(spec, normalisation)
        self._erase = _erasing(config)

    def __call__(self, batch: Tensor, seeds: Sequence[int]) -> Tensor:
        """A changed copy of the normalised `batch` (B, C, H, W); one seed per sample.

        Raises:
            ValueError: the pictures have neither 1 nor 3 channels.
        """
        crop = RandomResizedCropAndInterpolation(tuple(batch.shape[-2:]), scale=(self._least, 1.0))
        plain = self._change.pixels(batch)
        changed = torch.empty_like(batch)
        with _generators_restored():
            for number, seed in enumerate(seeds):
                _seed(seed)
                picture = self._mirrored(crop(_picture(plain[number])))
                changed[number] = self._erase(self._change(picture))
        return changed

    def _mirrored(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if self._mirror and random.random() < 0.5 else picture


class Clips:
    """RandAugment where it is asked for, and one erased rectangle for all frames of a clip."""

    def __init__(self, config: DataConfig, normalisation: Normalisation) -> None:
        spec = config.rand_augment
        self._change = None if spec is None else _RandAugment(spec, normalisation)
        self._erase = _erasing(config)

    def __call__(self, batch: Tensor, seeds: Sequence[int]) -> Tensor:
        """Changes clips (B, C, T, H, W), contiguous, in place; one seed per clip.

        Raises:
            ValueError: RandAugment is asked for, and the clips have neither 1 nor 3 channels.
        """
        plain = None if self._change is None else self._change.pixels(batch)
        with _generators_restored():
            for number, (clip, seed) in enumerate(zip(batch, seeds, strict=True)):
                if self._change is not None and plain is not None:
                    for frame in range(clip.shape[1]):
                        _seed(seed)  # again for each frame: all of them change alike
                        clip[:, frame] = self._change(_picture(plain[number][:, frame]))
                _seed(seed)
                self._erase(clip.view(-1, *clip.shape[2:]))
        return batch


class _RandAugment:
    """timm's, from pixels to normalised values."""

    def __init__(self, spec: str, normalisation: Normalisation) -> None:
        self._mean, self._std = (
            torch.tensor(values)[:, None, None]
            for values in (normalisation.mean, normalisation.std)
        )
        middle = tuple(round(255 * value) for value in normalisation.mean)
        self._transform = rand_augment_transform(
            spec, {"img_mean": middle if len(middle) == 3 else middle[0]}
        )
        for operation in self._transform.ops:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterized

    def pixels(self, batch: Tensor) -> Tensor:
        """Normalised values (B, C, ..., H, W) as bytes."""
        if batch.shape[1] not in (1, 3):
            raise ValueError(
                f"data.augment: standard is for pictures of 1 or 3 channels, not {batch.shape[1]}; "
                "use light"
            )
        middle = [1] * (batch.ndim - 4)
        mean, std = (one.view(-1, *middle, 1, 1) for one in (self._mean, self._std))
        return ((batch * std + mean) * 255).round_().clamp_(0, 255).byte()

    def __call__(self, picture: Image.Image) -> Tensor:
        """Normalised values (C, H, W) of the changed picture."""
        changed = self._transform(picture)
        pixels = torch.from_numpy(np.asarray(changed, dtype=np.float32)) / 255
        values = pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
        return (values - self._mean) / self._std


def _posterized(picture: Image.Image, bits: int, **_unused: object) -> Image.Image:
    """At its largest magnitude timm asks for no bit at all, which Pillow 13 refuses."""
    changed: Image.Image = posterize(picture, max(1, bits))
    return changed


def _erasing(config: DataConfig) -> RandomErasing:
    usual = _ERASED * min(1.0, config.augment_strength)
    return RandomErasing(
        usual if config.erase is None else config.erase, mode="pixel", device="cpu"
    )


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

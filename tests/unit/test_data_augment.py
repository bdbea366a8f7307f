"""Augmentation: a function of (seed, epoch, sample) alone, to the bit, and of the right kind."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m2pt.data.augment import Augmentation
from m2pt.data.config import EMBEDDED, Augment, DataConfig, Modality
from m2pt.data.draws import Draws
from m2pt.data.load import load
from m2pt.data.prepare import Normalisation

PLAIN = Normalisation((0.5,), (0.25,))
SHAPES: dict[Modality, tuple[int, ...]] = {
    "image": (3, 32, 32),
    "audio": (1, 48, 16),
    "video": (3, 4, 16, 16),
    "point": (64, 3),
}


def samples(modality: Modality, count: int = 6) -> Tensor:
    noise = torch.randn(count, *SHAPES[modality], generator=torch.Generator().manual_seed(0))
    return noise.clamp(-2, 2)  # pictures: pixels from 0 to 1


def view(
    modality: Modality, batch: Tensor, indices: list[int], epoch: int = 0, **choice: object
) -> Tensor:
    config = DataConfig("digits", **{"augment": "standard", **choice})  # type: ignore[arg-type]  # any key
    statistics = PLAIN
    if modality in ("image", "video"):
        statistics = Normalisation(PLAIN.mean * 3, PLAIN.std * 3)
    changed = Augmentation(config, modality, statistics)
    return changed(batch[indices], Draws(4, epoch, torch.tensor(indices)))


@pytest.mark.parametrize("kind", ["light", "standard"])
@pytest.mark.parametrize("name", list(EMBEDDED))
def test_it_depends_on_seed_epoch_and_sample_alone(name: str, kind: Augment) -> None:
    chosen = list(range(33))
    standard = kind == "standard"
    data = load(DataConfig(name, augment=kind, mirror=standard, turn=standard))
    plain, _ = data.train.batch(chosen)
    seen, _ = data.train.batch(chosen, epoch=1, seed=4)
    assert (seen != plain).flatten(1).any(dim=1).all()
    assert seen.dtype == torch.float32
    assert seen.isfinite().all()
    for part in ([9, 5], [32], list(range(17, 31))):
        assert torch.equal(data.train.batch(part, epoch=1, seed=4)[0], seen[part])
    assert not torch.equal(data.train.batch([5], epoch=2, seed=4)[0], seen[5:6])
    assert not torch.equal(data.train.batch([5], epoch=1, seed=5)[0], seen[5:6])
    assert torch.equal(data.test.batch([5], epoch=1)[0], data.test.batch([5])[0])


@pytest.mark.parametrize("modality", ["image", "video"])
def test_the_process_draws_on_as_if_nothing_had_been(modality: Modality) -> None:
    def next_draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.default_generator.manual_seed(1)

    seeded()
    wanted = next_draws()
    seeded()
    view(modality, samples(modality), [0, 1])
    assert next_draws() == wanted


@pytest.mark.parametrize("modality", ["image", "video"])
def test_only_mirror_mirrors(modality: Modality) -> None:
    """A picture that gets brighter to the right does so in every view, but for mirrored ones."""
    ramp = torch.linspace(-1, 1, SHAPES[modality][-1]).expand(64, *SHAPES[modality]).contiguous()

    def rising(mirror: bool) -> float:
        few: dict[str, Any] = {
            "augment_strength": 0.05,
            "mirror": mirror,
        }  # weak: nothing is inverted or cut off
        seen = view(modality, ramp, list(range(64)), **few).flatten(1, -2).mean(dim=1)
        half = seen.shape[-1] // 2
        return float((seen[:, half:].mean(dim=1) > seen[:, :half].mean(dim=1)).double().mean())

    assert rising(mirror=False) > 0.9
    assert 0.25 < rising(mirror=True) < 0.75


def test_frames_of_a_clip_change_alike() -> None:
    still = samples("video")[:, :, :1].expand(-1, -1, 4, -1, -1).contiguous()
    seen = view("video", still, [0, 1, 2, 3, 4, 5], augment_strength=0.4)
    moved = (seen - seen[:, :, :1]).abs().flatten(1).amax(dim=1)
    assert (moved < 1e-5).sum() >= 3  # the others have an erased rectangle: noise of its own


def test_spectrograms_are_masked_in_time_and_in_bands() -> None:
    loud = torch.full((400, *SHAPES["audio"]), 5.0)
    seen = view("audio", loud, list(range(400)))[:, 0] == 0
    times, bands = seen.all(dim=2).float().mean(dim=1), seen.all(dim=1).float().mean(dim=1)
    assert 0.1 < times.mean() < 0.3
    assert 0.1 < bands.mean() < 0.3
    assert times.max() <= 0.45


def test_clouds_are_turned_about_z_alone_where_asked_for() -> None:
    cloud = samples("point")
    plain = view("point", cloud, [0, 1, 2], augment_strength=1e-6)
    assert torch.allclose(plain, cloud[:3], atol=1e-4)
    turned = view("point", cloud, [0, 1, 2], augment_strength=1e-6, turn=True)
    assert torch.allclose(turned[..., 2], cloud[:3, :, 2], atol=1e-4)
    assert torch.allclose(turned.norm(dim=2), cloud[:3].norm(dim=2), atol=1e-3)
    assert not torch.allclose(turned, cloud[:3], atol=0.1)


def test_a_recipe_may_fix_what_is_masked() -> None:
    loud = torch.full((200, *SHAPES["audio"]), 5.0)
    exact: dict[str, Any] = {
        "mask_frames": 12,
        "mask_bands": 4,
        "noise": False,
        "augment_strength": 1e-6,
    }
    seen = view("audio", loud, list(range(200)), **exact)[:, 0] == 0
    times, bands = seen.all(dim=2).sum(dim=1), seen.all(dim=1).sum(dim=1)
    assert 4 < times.double().mean() < 8
    assert 1 < bands.double().mean() < 3
    assert (int(times.max()), int(bands.max())) <= (12, 4)
    left = view("audio", loud, [0], **{**exact, "mask_frames": 0, "mask_bands": 0})
    torch.testing.assert_close(left, loud[:1])


def test_points_are_scaled_and_moved_and_nothing_else_without_noise() -> None:
    cloud = samples("point")
    seen = view("point", cloud, [0, 1, 2], noise=False)
    for one, plain in zip(seen, cloud, strict=False):
        for axis in range(3):
            slope = (one[1:, axis] - one[0, axis]) / (plain[1:, axis] - plain[0, axis])
            torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=1e-2, atol=1e-2)
            assert 0.66 < slope[0] < 1.51


def test_clips_take_rand_augment_alike_in_all_frames() -> None:
    still = samples("video")[:, :, :1].expand(-1, -1, 4, -1, -1).contiguous()
    exact: dict[str, Any] = {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "erase": 0.0, "crop": 0.08}
    seen = view("video", still, [0, 1, 2, 3, 4, 5], **exact)
    assert torch.equal(seen, seen[:, :, :1].expand_as(seen))
    assert not torch.equal(seen, still)
    erased = view("video", still, [0, 1, 2, 3, 4, 5], **{**exact, "erase": 1.0})
    assert (erased != seen).flatten(1).any(dim=1).all()


def test_a_recipe_may_fix_what_is_erased() -> None:
    bright = torch.full((64, *SHAPES["image"]), 1.5)
    plain: dict[str, Any] = {"rand_augment": "rand-p0", "crop": 1.0}
    for probability in (0.0, 1.0):
        seen = view("image", bright, list(range(64)), erase=probability, **plain)
        noisy = (seen.flatten(2).std(dim=2) > 0.1).any(dim=1).double().mean()
        assert noisy == pytest.approx(probability, abs=0.1)


def test_the_largest_magnitude_leaves_a_picture() -> None:
    """timm then asks Pillow to keep 0 bits of a colour, which it refuses."""
    seen = view("image", samples("image", 40), list(range(40)), rand_augment="rand-m10-n2-p1-inc1")
    assert seen.isfinite().all()


def test_strength_is_how_much_points_move() -> None:
    cloud = samples("point")
    weak, strong = (
        (view("point", cloud, [0, 1, 2], augment_strength=strength) - cloud[:3]).abs().mean()
        for strength in (0.2, 1.0)
    )
    assert 0 < 3 * weak < strong


def test_pictures_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        view("image", samples("image")[:, :2], [0])


def test_older_files_say_true_or_false() -> None:
    assert DataConfig("digits", augment=True) == DataConfig("digits", augment="light")
    assert DataConfig("digits", augment=False) == DataConfig("digits")


def test_draws_are_uniform() -> None:
    draws = Draws(0, 0, torch.arange(4000))
    for stream in (0, 3):
        numbers = draws.uniform(8, stream=stream)
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert (numbers.mean(dim=0) - 0.5).abs().max() < 0.02
        assert (torch.corrcoef(numbers.T) - torch.eye(8)).abs().max() < 0.06
    assert not torch.equal(draws.uniform(8), draws.uniform(8, stream=3))
    assert len(set(draws.seeds(stream=1))) == 4000

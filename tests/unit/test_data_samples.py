"""Splits, batches, augmentation and the embedded samples."""

import sys
from subprocess import run

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2pt.data import embedded
from m2pt.data.audio import log_mel
from m2pt.data.augment import uniform_draws
from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.load import describe, load
from m2pt.data.schema import FrontEnd
from m2pt.data.split import hold_out

SHAPES = {
    "digits": (1, 8, 8),
    "tones": (1, 32, 32),
    "shapes": (128, 3),
    "clips": (1, 8, 16, 16),
}


@given(st.lists(st.integers(0, 4), max_size=60), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_hold_out_keeps_every_class(drawn: list[int], fraction: float, seed: int) -> None:
    labels = np.array(drawn, dtype=np.int64)
    held = hold_out(labels, fraction, seed)
    assert np.array_equal(held, hold_out(labels, fraction, seed))
    for label in np.unique(labels):
        rows = labels == label
        count = int(held[rows].sum())
        assert count < rows.sum()
        assert count >= 1 or rows.sum() == 1
        assert abs(count - fraction * rows.sum()) <= 1


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_embedded_sets(name: str) -> None:
    data = load(DataConfig(name))
    assert data.info == describe(DataConfig(name))
    assert data.info.modality == EMBEDDED[name]
    assert data.info.shape == SHAPES[name]
    batch, labels = data.train.batch(range(32))
    assert batch.shape == (32, *SHAPES[name])
    assert batch.isfinite().all()
    assert torch.equal(labels, data.train.labels[:32])
    for samples in (data.train, data.validation, data.test):
        assert set(samples.labels.tolist()) == set(range(data.info.classes))


def test_splits_do_not_overlap_and_follow_their_seed() -> None:
    def rows(seed: int) -> list[set[bytes]]:
        data = load(DataConfig("clips", validation_seed=seed))
        splits = (data.train, data.validation, data.test)
        raw = [samples.batch(range(len(samples)))[0] for samples in splits]
        mean, std = data.normalisation.mean[0], data.normalisation.std[0]
        return [{(x * std + mean).mul(255).round().numpy().tobytes() for x in xs} for xs in raw]

    train, validation, test = rows(0)
    assert len(train | validation | test) == 384
    other_train, other_validation, other_test = rows(1)
    assert other_test == test
    assert other_train | other_validation == train | validation
    assert other_validation != validation


def test_limit_takes_the_first_training_samples() -> None:
    whole, few = load(DataConfig("shapes")), load(DataConfig("shapes", limit=10))
    assert len(few.train) == 10
    assert torch.equal(few.train.batch(range(10))[0], whole.train.batch(range(10))[0])
    assert len(few.validation) == len(whole.validation)


def test_a_batch_is_a_fresh_tensor() -> None:
    samples = load(DataConfig("digits")).train
    first, labels = samples.batch([3, 1])
    kept, kept_labels = first.clone(), labels.clone()
    first.zero_()
    labels.zero_()
    again, labels = samples.batch([3, 1])
    assert torch.equal(again, kept)
    assert torch.equal(labels, kept_labels)


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_augmentation_depends_on_seed_epoch_and_sample_alone(name: str) -> None:
    data = load(DataConfig(name, augment=True))
    plain, _ = data.train.batch([5, 7, 9])
    view, _ = data.train.batch([5, 7, 9], epoch=1, seed=4)
    assert not torch.equal(view, plain)
    assert view.dtype == torch.float32
    assert torch.equal(data.train.batch([9, 5], epoch=1, seed=4)[0], view[[2, 0]])
    assert not torch.equal(data.train.batch([5], epoch=2, seed=4)[0], view[:1])
    assert not torch.equal(data.train.batch([5], epoch=1, seed=5)[0], view[:1])
    tested, _ = data.test.batch([5], epoch=1)
    assert torch.equal(tested, data.test.batch([5])[0])


def test_without_augment_the_training_view_is_plain() -> None:
    samples = load(DataConfig("tones")).train
    assert torch.equal(samples.batch([1, 2], epoch=3)[0], samples.batch([1, 2])[0])


def test_draws_are_uniform() -> None:
    draws = uniform_draws(0, 0, torch.arange(4000))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws.mean(dim=0) - 0.5).abs().max() < 0.02
    correlation = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlation.abs().max() < 0.06


def test_a_pure_tone_lands_in_its_band() -> None:
    front = FrontEnd(8000, 7000)
    time = torch.arange(7000) / 8000
    frames = log_mel(torch.sin(2 * torch.pi * 1000 * time)[None], front)[0]
    top = 2595 * np.log10(1 + 4000 / 700)
    band = 2595 * np.log10(1 + 1000 / 700) / top * (front.bands + 1) - 1
    loudest = frames[5:50].argmax(dim=1)
    assert (loudest - band).abs().max() <= 1
    assert frames.shape == (64, 64)
    assert float(frames[60].max()) < -13  # the padding is silence


def test_generated_content_stays_as_the_digest_says() -> None:
    """Where this fails a generator has changed: raise `_VERSION` in embedded.py, then the figures.

    The figures are coarse: rounding on another machine does not move them.
    """
    found = {name: embedded.generate(name).samples.astype(np.float64) for name in SHAPES}
    figures = {name: (len(x), float(x.mean()), float(x.std())) for name, x in found.items()}
    wanted = {
        "digits": (1797, 4.884, 6.017),
        "tones": (384, 1.16, 5216.1),
        "shapes": (384, 0.0, 0.4138),
        "clips": (384, 48.94, 25.82),
    }
    for name, values in wanted.items():
        assert figures[name] == pytest.approx(values, rel=2e-3, abs=2e-2), figures


def test_describing_needs_no_torch() -> None:
    program = (
        "import sys; from m2pt.data.describe import describe; "
        "from m2pt.data.config import DataConfig; describe(DataConfig('tones')); "
        "import m2pt.models.tokens; sys.exit('torch' in sys.modules)"
    )
    assert run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0

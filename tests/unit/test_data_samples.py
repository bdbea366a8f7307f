"""Splits, batches, augmentation and the embedded samples."""

import sys
from subprocess import run

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2pt.data import embedded
from m2pt.data.audio import fbank_options, log_mel
from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.load import describe, load
from m2pt.data.schema import FrontEnd
from m2pt.data.split import hold_out, hold_out_groups

SHAPES = {
    "digits": (1, 8, 8),
    "tones": (1, 32, 32),
    "shapes": (128, 3),
    "clips": (1, 8, 16, 16),
    "scenes": (1, 32, 32),
    "shape-parts": (128, 3),
}


@pytest.mark.slow
def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), embedded.generate("digits")
    assert np.array_equal(ours.samples, theirs.images)
    assert np.array_equal(ours.labels.stored, theirs.target)


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


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=80),
    st.floats(0.1, 0.5),
    st.integers(0, 2**32 - 1),
)
def test_hold_out_never_parts_a_group(
    drawn: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels = np.array([label for label, _ in drawn], dtype=np.int64)
    groups = [f"g{group}" for _, group in drawn]
    held = hold_out_groups(labels, groups, fraction, seed)
    assert np.array_equal(held, hold_out_groups(labels, groups, fraction, seed))
    for group in set(groups):
        assert len({bool(held[row]) for row, name in enumerate(groups) if name == group}) == 1
    assert all((~held)[labels == label].any() for label in np.unique(labels))
    wanted = fraction * np.bincount(labels, minlength=4)
    if len(labels):  # never further from what is wanted than with nothing held out
        assert np.abs(np.bincount(labels[held], minlength=4) - wanted).sum() <= wanted.sum()


def test_hold_out_takes_whole_folds() -> None:
    labels = np.tile(np.arange(10), 32)
    folds = [f"fold{row // 80}" for row in range(320)]
    held = [hold_out_groups(labels, folds, 0.2, seed) for seed in range(8)]
    assert all(one.sum() == 80 for one in held)
    assert len({one.tobytes() for one in held}) > 1


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
        if data.info.task == "parts":
            assert set(samples.labels[:, 0].tolist()) == set(range(data.info.classes))
            assert set(samples.labels[:, 1:].flatten().tolist()) == set(range(data.info.outputs))
        elif data.info.task == "labels":
            assert ((samples.labels == 0) | (samples.labels == 1)).all()
            assert samples.labels.any(dim=0).all()
        else:
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


def test_without_augment_the_training_view_is_plain() -> None:
    samples = load(DataConfig("tones")).train
    assert torch.equal(samples.batch([1, 2], epoch=3)[0], samples.batch([1, 2])[0])


def test_a_pure_tone_lands_in_its_band() -> None:
    front = FrontEnd(8000, 7000)
    time = torch.arange(7000) / 8000
    frames = log_mel(torch.sin(2 * torch.pi * 1000 * time)[None], front)[0]
    bottom, top, here = (1127 * np.log(1 + hertz / 700) for hertz in (20, 4000, 1000))
    band = (here - bottom) / (top - bottom) * (front.bands + 1) - 1
    assert (frames.argmax(dim=1) - band).abs().max() <= 1
    assert frames.shape == (96, 64)
    assert torch.equal(frames[86:], frames[85:86].expand(10, -1))  # the last one, repeated


@pytest.mark.parametrize("rate", [4000, 8000, 16000, 44100])
def test_log_mel_is_the_one_of_the_library(rate: int) -> None:
    wave = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(0))
    front = FrontEnd(rate, rate)
    theirs = kaldi_native_fbank.OnlineFbank(fbank_options(front))
    theirs.accept_waveform(rate, (wave - wave.mean()).tolist())
    theirs.input_finished()
    wanted = np.stack([theirs.get_frame(frame) for frame in range(theirs.num_frames_ready)])
    ours = log_mel(wave[None], front)[0]
    np.testing.assert_allclose(ours[: len(wanted)].numpy(), wanted, atol=2e-3)
    assert 0 <= front.frames - len(wanted) < 16


def test_log_mel_of_a_wave_is_its_own() -> None:
    waves = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    front = FrontEnd(8000, 4000)
    assert torch.equal(log_mel(waves, front)[3:4], log_mel(waves[3:4], front))
    assert log_mel(torch.zeros(1, 10), FrontEnd(8000, 10)).isfinite().all()


@pytest.mark.parametrize("rate", [1000, 2000, 7999, 8000, 11025, 15999, 16000, 22049, 22050, 96000])
def test_every_rate_has_bands_that_hold_something(rate: int) -> None:
    front = FrontEnd(rate, rate)
    noise = torch.randn(1, rate, generator=torch.Generator().manual_seed(0))
    assert float(log_mel(noise, front).amax(dim=1).min()) > -8


@pytest.mark.slow
def test_generated_content_stays_as_the_digest_says() -> None:
    """Where this fails a generator has changed: raise `_VERSIONS` in embedded.py, then the figures.

    The figures are coarse: rounding on another machine does not move them.
    """
    found = {name: embedded.generate(name).samples.astype(np.float64) for name in SHAPES}
    figures = {name: (len(x), float(x.mean()), float(x.std())) for name, x in found.items()}
    wanted = {
        "digits": (1797, 4.884, 6.017),
        "tones": (384, 0.526, 5204.3),
        "shapes": (384, 0.0, 0.4138),
        "clips": (384, 48.94, 25.82),
        "scenes": (384, 1.74, 4464.9),
        "shape-parts": (256, 0.0, 0.3793),
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

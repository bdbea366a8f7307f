"""From one file to one sample, for each kind of file."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from m2pt.data.schema import parse
from orchestrator.errors import RequestError
from orchestrator.importing.audio import Audio
from orchestrator.importing.images import Images
from orchestrator.importing.kinds import Broken, Kind
from orchestrator.importing.points import PointClouds
from orchestrator.importing.videos import Videos
from tests.importing_setup import clip, mesh, npy, png, wav

RNG = np.random.default_rng(7)


def sample(kind: Kind, content: bytes, suffix: str = "", seed: int = 0) -> npt.NDArray[Any]:
    """One sample as the contract reads it."""
    declared = kind.declared()
    flat = np.frombuffer(kind.sample(content, suffix, seed), declared["dtype"])
    return flat.reshape(declared["shape"])


@pytest.mark.parametrize("kind", [Images(8), Audio(1.0), Videos(4, 8), PointClouds(16)])
def test_what_is_declared_is_in_the_contract(kind: Kind) -> None:
    schema = parse({**kind.declared(), "classes": ["a", "b"]}, "test")
    assert schema.sample_bytes == kind.typical_bytes


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(sample(Images(8), png(pixels)), pixels)
    grey = sample(Images(8), png(pixels[..., 0]))
    assert np.array_equal(grey, np.repeat(pixels[..., :1], 3, axis=2))


def test_fit_crops_or_squashes() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8] = wide[:, 16:] = 255
    assert not sample(Images(8), png(wide)).any()
    squashed = sample(Images(8, "squash"), png(wide))
    assert squashed[:, 0].all()
    assert squashed[:, 7].all()
    assert not squashed[:, 4].any()


def test_every_mode_becomes_rgb() -> None:
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    assert np.array_equal(sample(Images(8), png(deep))[..., 0], deep >> 8)
    for mode in ("1", "P", "L", "LA", "RGBA", "CMYK"):
        made = io.BytesIO()
        Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(made, "TIFF")
        assert sample(Images(8), made.getvalue()).min() >= 254, mode
    made = io.BytesIO()
    Image.new("F", (8, 8)).save(made, "TIFF")
    with pytest.raises(Broken, match="mode F, whose range is unknown"):
        sample(Images(8), made.getvalue())


def test_photos_are_turned_upright() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    made = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is on the right
    Image.fromarray(pixels).save(made, "PNG", exif=exif)
    assert sample(Images(8), made.getvalue())[:, 7].all()


@pytest.mark.parametrize(("encoding", "off"), [("jpeg", 40), ("png", 0)])
def test_encoded_images_decode_to_the_shape(encoding: Any, off: int) -> None:
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    stored = Images(16, encoding=encoding).sample(png(smooth), ".png", 0)
    decoded = np.asarray(Image.open(io.BytesIO(stored)))
    assert decoded.shape == (16, 16, 3)
    assert decoded.dtype == np.uint8
    assert abs(decoded.astype(int) - smooth).max() <= off


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_sound_of_the_right_rate_keeps_its_values(kind: str) -> None:
    waves = RNG.integers(-32768, 32768, 500, dtype=np.int16)
    got = sample(Audio(0.1, 8000), wav(waves, 8000, kind))
    assert np.array_equal(got[:500], waves)
    assert not got[500:].any()
    assert np.array_equal(sample(Audio(0.05, 8000), wav(waves, 8000, kind)), waves[:400])
    both = np.stack([waves // 2, -(waves // 2)], axis=1)
    assert not sample(Audio(0.05, 8000), wav(both, 8000, kind)).any()


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_resampling_keeps_the_tone(rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(rate) / rate)
    got = sample(Audio(0.5, 16000), wav(tone, rate))
    ideal = 0.5 * np.sin(2 * np.pi * 500 * np.arange(8000) / 16000) * 32768
    inner = slice(100, -100)
    assert abs(got[inner] - ideal[inner]).max() < 0.01 * 32768


def test_a_long_sound_is_as_its_start() -> None:
    long = RNG.uniform(-1, 1, 44100)
    whole, cut = (sample(Audio(0.25, 16000), wav(w, 44100)) for w in (long, long[:20000]))
    assert np.array_equal(whole, cut)


@pytest.mark.parametrize(
    ("waves", "told"),
    [(np.zeros(0), "length is zero"), (np.full(100, np.nan, np.float32), "NaN")],
)
def test_broken_sound(waves: npt.NDArray[Any], told: str) -> None:
    import soundfile

    made = io.BytesIO()
    soundfile.write(made, waves, 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(Broken, match=told):
        sample(Audio(1), made.getvalue())


@pytest.mark.parametrize(
    ("kind", "codec"), [("mp4", "mpeg4"), ("avi", "mpeg4"), ("matroska", "h264")]
)
def test_frames_are_spaced_evenly(kind: str, codec: str) -> None:
    levels = [10 + 20 * number for number in range(12)]
    got = sample(Videos(4, 16), clip(levels, kind, codec))
    assert abs(got.mean(axis=(1, 2, 3)) - [levels[n] for n in (1, 4, 7, 10)]).max() < 4
    short = sample(Videos(4, 16), clip([0, 200], kind, codec)).mean(axis=(1, 2, 3))
    assert abs(short - [0, 0, 200, 200]).max() < 6


def test_a_clip_without_frames() -> None:
    with pytest.raises(ValueError, match="Invalid data"):
        sample(Videos(4, 16), b"no clip")
    with pytest.raises(Broken, match="holds no video"):
        sample(Videos(4, 16), wav(np.zeros(100), 8000))


def test_clouds_are_brought_to_their_number_of_points() -> None:
    cloud = RNG.normal(size=(50, 6))
    for points in (20, 50, 120):
        got = sample(PointClouds(points), npy(cloud), ".npy", seed=3)
        assert np.array_equal(got, sample(PointClouds(points), npy(cloud), ".npy", seed=3))
        assert abs(got.mean(axis=0)).max() < 1e-6
        assert np.linalg.norm(got, axis=1).max() == pytest.approx(1)
        assert len(np.unique(got, axis=0)) == min(points, 50)
    other = sample(PointClouds(20), npy(cloud), ".npy", seed=4)
    assert not np.array_equal(other, sample(PointClouds(20), npy(cloud), ".npy", seed=3))


@pytest.mark.parametrize("suffix", ["ply", "off"])
def test_meshes_are_sampled_over_their_surface(suffix: str) -> None:
    got = sample(PointClouds(2000), mesh(suffix), f".{suffix}")
    width, depth, height = got.max(axis=0) - got.min(axis=0)
    assert depth / width == pytest.approx(2, rel=0.1)
    assert height / width == pytest.approx(4, rel=0.1)
    ends = np.mean(abs(got[:, 2]) > got[:, 2].max() - 1e-3)
    assert ends == pytest.approx(4 / 28, abs=0.03)  # the two ends have 4 of 28 of the surface
    assert np.array_equal(got, sample(PointClouds(2000), mesh(suffix), f".{suffix}"))


def test_a_cloud_in_an_npz_or_ply_file() -> None:
    import trimesh

    cloud = RNG.normal(size=(30, 3))
    made = io.BytesIO()
    np.savez(made, points=cloud, normals=cloud)
    wanted = sample(PointClouds(30), npy(cloud), ".npy")
    assert np.array_equal(sample(PointClouds(30), made.getvalue(), ".npz"), wanted)
    ply = trimesh.PointCloud(cloud).export(file_type="ply")
    assert sample(PointClouds(30), ply, ".ply") == pytest.approx(wanted, abs=1e-6)
    made = io.BytesIO()
    np.savez(made, a=cloud, b=cloud)
    with pytest.raises(Broken, match="arrays a, b: one of them is named `points`"):
        sample(PointClouds(30), made.getvalue(), ".npz")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((0, 3)), "holds no points"),
        (np.zeros((5, 2)), r"\(N, 3\), .* not \(5, 2\)"),
        (np.array([[0, 0, 0], [0, np.nan, 1]]), "NaN"),
        (np.ones((5, 3)), "all its points are one"),
    ],
)
def test_broken_clouds(values: npt.NDArray[Any], told: str) -> None:
    with pytest.raises(Broken, match=told):
        sample(PointClouds(8), npy(values), ".npy")


def test_a_pickle_is_not_opened() -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        sample(PointClouds(8), npy(np.array([{"a": 1}], dtype=object)), ".npy")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Images(0), "--size: 1 or more, but it is 0"),
        (lambda: Images(20000), "--size 20000: one sample would take 1,144 MiB, more than 256"),
        (lambda: Audio(0.0), "--seconds: 0.05 or more"),
        (lambda: Audio(1, 100), "--sample-rate: 1000 or more"),
        (lambda: Videos(0), "--frames: 1 or more"),
        (lambda: PointClouds(0), "--points: 1 or more"),
    ],
)
def test_options_out_of_range(make: Any, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        make()

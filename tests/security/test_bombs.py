"""Small files that say they are large, or become so: refused before they fill the memory."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2pt.training.state import from_bytes
from orchestrator.importing import audio, kinds, videos
from orchestrator.importing.audio import Audio
from orchestrator.importing.images import Images
from orchestrator.importing.kinds import Broken
from orchestrator.importing.points import PointClouds
from orchestrator.importing.videos import Videos
from tests.contract.wrong_input import (
    CLASSES,
    DECLARED,
    TABLE,
    Columns,
    Desk,
    Wrong,
    cell,
    table,
)
from tests.importing_setup import clip, npy, run, wav, write


def png_of(width: int, height: int) -> bytes:
    """A PNG of these many pixels, all of them missing but the header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        sum_of = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + sum_of

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)


# Tables ----------------------------------------------------------------------------------------

PICTURES = {"modality": "image", "dtype": "uint8", "shape": [8, 8, 3], "encoding": "png",
            "classes": CLASSES}  # fmt: skip


def test_a_picture_of_a_table(desk: Desk) -> None:
    bomb = cell("data", 0, png_of(60_000, 60_000))
    told = r"column 'data', row 0 \(id 'row-0'\): no sound PNG .*exceeds limit.*drop the row"
    desk.refuses(Wrong("picture", told, TABLE, prepare=table(bomb, declared=PICTURES)))


def test_a_row_group_that_unpacks_to_much(desk: Desk) -> None:
    """Zeros of which a file holds a thousandth; the limit itself, 2 GiB, is lowered here."""
    desk.monkeypatch.setattr("m2pt.data.parquet.LARGEST_GROUP_BYTES", 2**20)

    def prepare(folder: Path) -> None:
        table(lambda rows: rows.update(data=[bytes([n]) * 2**18 for n in range(12)]))(folder)
        whole = pq.read_table(folder / "table.parquet")
        pq.write_table(whole, folder / "table.parquet", compression="zstd", use_dictionary=False)
        assert (folder / "table.parquet").stat().st_size < 2**16

    told = r"table.parquet: row group 0 has 3,\d+,\d+ bytes once .* may have 1,048,576; write it"
    desk.refuses(Wrong("row group", told, TABLE, prepare=prepare))


def test_a_value_that_is_named_many_times(desk: Desk) -> None:
    """A dictionary of one value: unpacked, its pages hold it once; written out, twelve times."""
    desk.monkeypatch.setattr("m2pt.data.parquet.LARGEST_GROUP_BYTES", 2**20)

    def same(rows: Columns) -> None:
        rows["data"] = [bytes(2**18)] * 12

    told = r"table.parquet: row group 0 has 3,145,728 bytes once it is unpacked, and may have"
    desk.refuses(Wrong("dictionary", told, TABLE, prepare=table(same)))


def test_a_shape_that_no_memory_holds(desk: Desk) -> None:
    huge = {**PICTURES, "shape": [100_000, 100_000, 3]}
    told = "key 'shape': of one sample, of at most 1,073,741,824 bytes, but it is"
    desk.refuses(Wrong("shape", told, TABLE, prepare=table(declared=huge)))


def test_a_value_that_is_named_several_times_is_read(tmp_path: Path) -> None:
    """As others write tables, pandas for example: with dictionaries."""
    from m2pt.data.parquet import read_table

    table(lambda rows: rows.update(data=[b"\1" * 64] * 12))(tmp_path)
    column = read_table(str(tmp_path / "table.parquet")).read_column(0, "data")
    assert column.type == pa.binary()
    assert column.to_pylist() == [b"\1" * 64] * 12
    assert DECLARED["shape"] == [8, 8]


def test_a_state_whose_header_has_no_end() -> None:
    for length in (2**62, 2**31):
        with pytest.raises(ValueError, match="no whole safetensors file"):
            from_bytes(struct.pack("<Q", length) + b"{}")


# Files to import -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "told"), [(60_000, "more pixels than are decoded"), (12_000, "at most 134 million")]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture(size: int, told: str) -> None:
    with pytest.raises(Broken, match=told):
        Images(8).sample(png_of(size, size), ".png", 0)


def test_a_picture_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CLASSES:
        for number in range(2):
            write(tmp_path / "in" / name / f"{number}.png", png_of(60_000, 60_000))
    words = ("import", "images", tmp_path / "in", tmp_path / "out", "--test-fraction", "0.5")
    code, said = run(capsys, *words)
    assert code == 2
    assert ".png: more pixels than are decoded" in said["error"]


def test_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    content = clip([10, 20, 30, 40, 50])
    monkeypatch.setattr(videos, "_MOST_FRAMES", 3)
    with pytest.raises(Broken, match="more than 3 frames"):
        Videos(2, 8).sample(content, ".mp4", 0)
    monkeypatch.setattr(kinds, "PIXELS", 1000)
    with pytest.raises(Broken, match="48 x 32 pixels, and at most"):
        Videos(2, 8).sample(content, ".mp4", 0)


def test_a_sound_that_goes_on_for_ever() -> None:
    """Twenty minutes in a few kilobytes: no more than its first second is decoded."""
    content = wav(np.zeros(20 * 60 * 8000, np.int16), 8000, "FLAC")
    assert len(content) < 2**18
    tracemalloc.start()
    assert len(Audio(1, 8000).sample(content, ".flac", 0)) == 16000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_sound_of_an_absurd_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    content = wav(np.zeros(100, np.int16), 2_000_000_000)
    with pytest.raises(Broken, match="2,000,000,000 values a second, and at most 1,000,000"):
        Audio(1).sample(content, ".wav", 0)
    monkeypatch.setattr(kinds, "DECODED_BYTES", 1000)
    assert audio._HIGHEST_RATE == 1_000_000
    with pytest.raises(Broken, match="MiB once decoded"):
        Audio(1).sample(wav(np.zeros((400, 2)), 16000), ".wav", 0)


def test_an_array_that_says_it_is_large() -> None:
    small = npy(np.zeros((10, 3)))
    huge = small.replace(b"(10, 3), }     ", b"(10000000, 3)} ").replace(
        b"(10, 3), }", b"(10, 300)}", 1
    )
    assert huge != small
    assert len(huge) == len(small)
    with pytest.raises(Broken, match=r"says it is of [\d,]+ bytes, and holds fewer"):
        PointClouds(4).sample(huge, ".npy", 0)


def test_an_archive_that_unpacks_to_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "DECODED_BYTES", 2**20)
    made = io.BytesIO()
    np.savez_compressed(made, points=np.zeros((2**17, 3)))
    assert len(made.getvalue()) < 2**13
    with pytest.raises(Broken, match="takes 3 MiB once decoded, and may take 1"):
        PointClouds(4).sample(made.getvalue(), ".npz", 0)


def test_an_archive_that_lies_about_it() -> None:
    made = io.BytesIO()
    np.savez_compressed(made, points=np.zeros((2**17, 3)))
    content = bytearray(made.getvalue())
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", 200)
    with pytest.raises((Broken, zipfile.BadZipFile)):
        PointClouds(4).sample(bytes(content), ".npz", 0)


@pytest.mark.parametrize("kind", ["ascii 1.0", "binary_little_endian 1.0"])
def test_a_cloud_that_says_it_is_large(kind: str) -> None:
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat {kind}\nelement vertex 1000000000000\n{axes}end_header\n"
    with pytest.raises(Exception, match=r"."):
        PointClouds(4).sample(head.encode() + b"0 0 0 \n" * 3, ".ply", 0)

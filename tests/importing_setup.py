"""Folders of tiny files of each kind, and imports of them through the command line."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import trimesh
from PIL import Image

from orchestrator.cli import main

CLASSES = ("cat", "dog")


def image_folder(root: Path, count: int = 6, size: int = 8) -> Path:
    """`count` PNG files in each of two class folders."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            write(root / name / f"{number}.png", png(pixels))
    return root


def write(file: Path, content: bytes) -> Path:
    """A file with its folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def png(pixels: npt.NDArray[Any]) -> bytes:
    """Pixels (H, W[, 3]) as a PNG file."""
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def wav(waves: npt.NDArray[Any], rate: int, kind: str = "WAV") -> bytes:
    """Values (S[, channels]) as a sound file."""
    made = io.BytesIO()
    soundfile.write(made, waves, rate, format=kind)
    return made.getvalue()


def clip(levels: list[int], kind: str = "mp4", codec: str = "mpeg4") -> bytes:
    """A clip of 32 × 48 pixels with one grey level per frame."""
    made = io.BytesIO()
    with av.open(made, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for level in levels:
            pixels = np.full((32, 48, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return made.getvalue()


def npy(values: npt.NDArray[Any]) -> bytes:
    """An array as an NPY file."""
    made = io.BytesIO()
    np.save(made, values)
    return made.getvalue()


def mesh(kind: str) -> bytes:
    """A box of 1 × 2 × 4 as a file of a mesh."""
    made = trimesh.creation.box((1, 2, 4)).export(file_type=kind)
    return made.encode() if isinstance(made, str) else bytes(made)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """`orchestrator data WORDS --json`: exit code and what it printed."""
    code = main(["data", *map(str, words), "--json"])
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, said


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their paths."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }

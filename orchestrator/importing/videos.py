"""Clips: PyAV decodes, the result is a fixed number of square RGB frames."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import av
import numpy as np
from PIL import Image

from orchestrator.importing.images import Fit, squared
from orchestrator.importing.kinds import Broken, at_least, check_pixels, check_sample_bytes

_MOST_FRAMES = 1_000_000
"""Of one file: nine hours at thirty a second."""


@dataclass(frozen=True)
class Videos:
    """Samples (frames, size, size, 3) uint8.

    The clip is cut into as many equal stretches as there are frames, and the middle frame of each
    is taken; a clip of fewer frames repeats some. Frames are turned upright as the file says.
    """

    NAME: ClassVar[str] = "videos"
    SUFFIXES: ClassVar[frozenset[str]] = frozenset(
        {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}
    )
    VERSION: ClassVar[int] = 1

    frames: int = 16
    size: int = 112
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        at_least("--frames", self.frames, 1)
        at_least("--size", self.size, 1)
        check_sample_bytes(self.typical_bytes, f"--frames {self.frames} --size {self.size}")

    def declared(self) -> dict[str, Any]:
        """See `Kind`."""
        return {
            "modality": "video",
            "dtype": "uint8",
            "shape": [self.frames, self.size, self.size, 3],
            "layout": "THWC RGB",
        }

    @property
    def typical_bytes(self) -> int:
        """See `Kind`."""
        return 3 * self.frames * self.size**2

    def sample(self, content: bytes, suffix: str, seed: int) -> bytes:
        """See `Kind`.

        Decoded once where the file says rightly how many frames it has, else twice: frames are
        never all held at once.
        """
        del suffix, seed  # the content says what it is, and nothing is drawn
        # as far as a file says it; a frame is looked at again once it is decoded
        expected = _promised(content)
        for _ in range(2):
            taken, found = self._take(content, expected)
            if not found:
                raise Broken("holds no frame")
            if found == expected:
                return b"".join(taken)
            expected = found
        raise Broken("has another number of frames each time it is decoded")

    def _take(self, content: bytes, expected: int) -> tuple[list[bytes], int]:
        """The frames that are wanted of a clip of `expected` frames, and how many it has."""
        wanted = [(2 * slot + 1) * expected // (2 * self.frames) for slot in range(self.frames)]
        taken: list[bytes] = []
        found = 0
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are decoded side by side
            for number, frame in enumerate(container.decode(stream)):
                found = number + 1
                if found > _MOST_FRAMES:
                    raise Broken(f"more than {_MOST_FRAMES:,} frames: cut it into clips")
                check_pixels(frame.width, frame.height)
                if times := wanted.count(number) if expected else 0:
                    taken += [self._pixels(frame)] * times
        return taken, found

    def _pixels(self, frame: Any) -> bytes:
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(squared(image, self.size, self.fit)).tobytes()


def _promised(content: bytes) -> int:
    """How many frames the file says it has; 0 when it does not say."""
    with av.open(io.BytesIO(content)) as container:
        if not container.streams.video:
            raise Broken("holds no video")
        stream = container.streams.video[0]
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        return int(stream.frames)

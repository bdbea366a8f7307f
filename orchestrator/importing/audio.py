"""Sounds: soundfile decodes, SciPy resamples, the result is mono of one length."""

import io
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import soundfile
from scipy.signal import resample_poly

from orchestrator.importing.kinds import Broken, at_least, check_decoded, check_sample_bytes

_FULL_SCALE = 32768
_HIGHEST_RATE = 1_000_000
"""Twice and more what any recorder does; the filter that resamples grows with it."""


@dataclass(frozen=True)
class Audio:
    """Samples (seconds · sample_rate,) int16.

    Channels are averaged; the sound is resampled, then its start is kept, and silence is put
    behind what is shorter. A file of this rate in 16-bit mono keeps its values exactly.
    """

    NAME: ClassVar[str] = "audio"
    SUFFIXES: ClassVar[frozenset[str]] = frozenset({".wav", ".flac", ".ogg", ".mp3"})
    VERSION: ClassVar[int] = 1

    seconds: float
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        at_least("--sample-rate", self.sample_rate, 1000)
        at_least("--seconds", self.seconds, 0.05)
        check_sample_bytes(2 * self.samples, f"--seconds {self.seconds:g}")

    @property
    def samples(self) -> int:
        """Values in one row."""
        return round(self.seconds * self.sample_rate)

    def declared(self) -> dict[str, Any]:
        """See `Kind`."""
        return {
            "modality": "audio",
            "dtype": "int16",
            "shape": [self.samples],
            "layout": "mono PCM",
            "sample_rate": self.sample_rate,
        }

    @property
    def typical_bytes(self) -> int:
        """See `Kind`."""
        return 2 * self.samples

    def sample(self, content: bytes, suffix: str, seed: int) -> bytes:
        """See `Kind`."""
        del suffix, seed  # the content says what it is, and nothing is drawn
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if not 1 <= file.samplerate <= _HIGHEST_RATE:
                raise Broken(
                    f"{file.samplerate:,} values a second, and at most {_HIGHEST_RATE:,} are read"
                )
            divisor = math.gcd(self.sample_rate, file.samplerate)
            up, down = self.sample_rate // divisor, file.samplerate // divisor
            # what the filter reaches past the last value that is kept is read as well
            enough = math.ceil((self.samples + 1) * down / up) + 10 * max(up, down) // up + 1
            check_decoded(8 * file.channels * min(enough, file.frames))
            waves = file.read(enough, dtype="float64", always_2d=True)
            if len(waves) < min(enough, file.frames):
                raise Broken(f"ends after {len(waves)} of {file.frames} values")
        if not len(waves):
            raise Broken("holds no sound: its length is zero")
        mono = waves.mean(axis=1)
        if not np.isfinite(mono).all():
            raise Broken("holds NaN or infinity")
        return self._cut(mono if up == down else resample_poly(mono, up, down))

    def _cut(self, mono: np.ndarray[Any, np.dtype[np.float64]]) -> bytes:
        kept = np.zeros(self.samples)
        kept[: len(mono)] = mono[: self.samples]
        scaled = np.rint(kept * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1)
        return scaled.astype("<i2").tobytes()

"""The embedded sample `scenes`: sounds of which several may be heard at once."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Sets = npt.NDArray[np.bool_]

SOUNDS = ("hum", "whistle", "climb", "dive", "clicks", "hiss")
_LENGTH, _RATE = 1360, 4000


def scenes(count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int16], Sets]:
    """(count, 1360) samples at 4 kHz, and which sounds are in them: each in a third, (count, 6)."""
    sets = rng.uniform(size=(count, len(SOUNDS))) < 1 / 3
    waves = np.stack([_scene(one, rng) for one in sets])
    return (waves.clip(-1, 1) * 32767).astype(np.int16), sets


def _scene(there: Sets, rng: np.random.Generator) -> Array:
    wave = rng.normal(0, rng.uniform(0.005, 0.02), _LENGTH)
    for kind, heard in zip(SOUNDS, there, strict=True):
        if heard:
            wave = wave + rng.uniform(0.08, 0.2) * _sound(kind, rng)
    return wave


def _sound(kind: str, rng: np.random.Generator) -> Array:
    """A third of a second of one sound, (1360,)."""
    time = np.arange(_LENGTH) / _RATE
    if kind == "clicks":
        beat = (rng.uniform(12, 20) * time + rng.uniform()) % 1
        return np.asarray(3 * np.exp(-60 * beat) * rng.normal(size=_LENGTH))
    if kind == "hiss":
        return 0.5 * np.diff(rng.normal(size=_LENGTH + 1))
    part, reach = time / time[-1], rng.uniform(2.5, 3.5)
    pitch = {
        "hum": np.full(_LENGTH, rng.uniform(90, 160)),
        "whistle": np.full(_LENGTH, rng.uniform(1300, 1700)),
        "climb": 300 * reach**part,
        "dive": 300 * reach ** (1 - part),
    }[kind]
    return np.asarray(np.sin(2 * np.pi * (np.cumsum(pitch) / _RATE + rng.uniform())))

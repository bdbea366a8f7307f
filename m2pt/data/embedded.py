"""Samples that need no file: scikit-learn's digits, and small generated sets.

The generated classes differ in structure (how a pitch moves, what a surface is, where a blob goes)
and not in what an average over the sample would tell: `rise` and `fall` have the same spectrum,
`left` and `right` the same single frames. A row of `scenes` has any number of its classes at once;
a row of `shape-parts` tells the part of each of its points.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2pt.data.labels import Labels, packed
from m2pt.data.scenes import SOUNDS, scenes
from m2pt.data.schema import Schema
from m2pt.data.shape_parts import CATEGORIES, PARTS, POINTS, shape_parts
from m2pt.data.split import hold_out

Array = npt.NDArray[np.float64]
Made = tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]
"""Samples, and labels as `Labels` stores them."""

# Raise a set's number when its generator or its preparation changes: it makes the digest.
_VERSIONS = {"digits": 1, "tones": 2, "shapes": 1, "clips": 1, "scenes": 1, "shape-parts": 1}
_SEED = 1
_PER_CLASS = 64
_TEST_FRACTION = 0.2

SCHEMAS: dict[str, Schema] = {
    "digits": Schema("image", "uint8", (8, 8), tuple(str(digit) for digit in range(10))),
    "tones": Schema(
        "audio", "int16", (1360,), ("rise", "fall", "arch", "dip", "tremolo", "vibrato"), 4000
    ),
    "shapes": Schema(
        "point", "float16", (128, 3), ("sphere", "box", "cylinder", "cone", "torus", "cross")
    ),
    "clips": Schema(
        "video",
        "uint8",
        (8, 16, 16),
        ("right", "left", "down", "up", "clockwise", "anticlockwise"),
    ),
    "scenes": Schema(
        "audio",
        "int16",
        (1360,),
        SOUNDS,
        4000,
        task="labels",
    ),
    "shape-parts": Schema("point", "float16", (POINTS, 3), CATEGORIES, task="parts", parts=PARTS),
}


@dataclass(frozen=True)
class Embedded:
    """N samples (N, *schema.shape), their labels, and which rows are the test split (N,)."""

    schema: Schema
    samples: npt.NDArray[np.generic]
    labels: Labels
    test: npt.NDArray[np.bool_]


def digest(name: str) -> str:
    """Names the content by what makes it, so that rounding on other machines changes nothing."""
    return hashlib.sha256(f"m2pt embedded {name} {_VERSIONS[name]}".encode()).hexdigest()


def generate(name: str) -> Embedded:
    """The embedded sample `name`: the same on every call, its rows in no order of classes."""
    makers: dict[str, Callable[[], Made]] = {
        "digits": _digits,
        "scenes": _scenes,
        "shape-parts": _shape_parts,
    }
    samples, stored = makers[name]() if name in makers else _generated(name)
    schema = SCHEMAS[name]
    labels = Labels(schema.task, len(schema.classes), stored)
    return Embedded(schema, samples, labels, hold_out(labels.strata, _TEST_FRACTION, seed=0))


def _digits() -> Made:
    """The file that scikit-learn brings: 8 x 8 pixels and a label in a row. To import scikit-learn
    for it would cost each worker of a study a second."""
    found = find_spec("sklearn")
    assert found is not None
    assert found.submodule_search_locations is not None
    [home] = found.submodule_search_locations
    rows = np.loadtxt(Path(home) / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    return np.ascontiguousarray(rows[:, :-1]).reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def _scenes() -> Made:
    samples, sets = scenes(6 * _PER_CLASS, np.random.default_rng([_SEED, *b"scenes"]))
    return samples, packed(sets)


def _shape_parts() -> Made:
    rng = np.random.default_rng([_SEED, *b"shape-parts"])
    kinds = np.repeat(np.arange(len(CATEGORIES), dtype=np.int64), _PER_CLASS)
    return shape_parts(rng.permutation(kinds), rng)


def _generated(name: str) -> Made:
    makers: dict[str, Callable[[str, np.random.Generator], npt.NDArray[np.generic]]] = {
        "tones": _tone,
        "shapes": _shape,
        "clips": _clip,
    }
    classes = SCHEMAS[name].classes
    rng = np.random.default_rng([_SEED, *name.encode()])
    labels = rng.permutation(np.repeat(np.arange(len(classes), dtype=np.int64), _PER_CLASS))
    return np.stack([makers[name](classes[label], rng) for label in labels]), labels


def _tone(kind: str, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """A third of a second of a pitch that moves, with overtones and noise: (1360,) at 4 kHz."""
    count = 1360
    time = np.arange(count) / 4000
    phase = (time / time[-1] - rng.uniform(-0.1, 0.1)).clip(0, 1)
    course = {
        "rise": phase,
        "fall": 1 - phase,
        "arch": 1 - abs(2 * phase - 1),
        "dip": abs(2 * phase - 1),
    }.get(kind, np.full(count, 0.5))
    wobble = np.sin(2 * np.pi * (rng.uniform(7.5, 13.5) * time + rng.uniform()))
    octaves = rng.uniform(0.5, 1.1) * course + (0.25 * wobble if kind == "vibrato" else 0)
    pitch = rng.uniform(250, 450) * 2**octaves
    angle = 2 * np.pi * (np.cumsum(pitch) / 4000 + rng.uniform())
    wave = np.sin(angle) + rng.uniform(0, 0.5) * np.sin(2 * angle)
    wave *= 1 + (0.8 * wobble if kind == "tremolo" else 0)
    wave = wave * rng.uniform(0.1, 0.3) + rng.normal(0, rng.uniform(0.01, 0.06), count)
    return (wave.clip(-1, 1) * 32767).astype(np.int16)


def _shape(kind: str, rng: np.random.Generator) -> npt.NDArray[np.float16]:
    """128 points of a surface, stretched, turned about z and slightly noisy: (128, 3)."""
    count = 128
    angle, height = rng.uniform(0, 2 * np.pi, count), rng.uniform(-1, 1, count)
    if kind == "sphere":
        points = _unit(rng.normal(size=(count, 3)))
    elif kind == "box":
        points = rng.uniform(-1, 1, (count, 3))
        side = rng.integers(0, 3, count)
        points[np.arange(count), side] = rng.choice([-1.0, 1.0], count)
    elif kind == "cylinder":
        points = np.stack([np.cos(angle), np.sin(angle), height], axis=1)
    elif kind == "cone":
        radius = np.sqrt(rng.uniform(0, 1, count))
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle), 1 - 2 * radius], axis=1)
    elif kind == "torus":
        ring, tube = rng.uniform(0, 2 * np.pi, count), 0.35
        radius = 1 + tube * np.cos(ring)
        points = np.stack(
            [radius * np.cos(angle), radius * np.sin(angle), tube * np.sin(ring)], axis=1
        )
    else:
        points = np.stack([rng.uniform(-1, 1, count), np.zeros(count), height], axis=1)
        points[count // 2 :] = points[count // 2 :, [1, 0, 2]]
    points = points * rng.uniform(0.6, 1.0, 3) @ _turn(rng.uniform(0, 2 * np.pi))
    points += rng.normal(0, 0.03, points.shape)
    points -= points.mean(axis=0)
    return np.asarray(points / np.linalg.norm(points, axis=1).max(), dtype=np.float16)


def _clip(kind: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A blob that moves past a fainter one at rest, in noise: (8, 16, 16)."""
    steps = np.linspace(-0.5, 0.5, 8)
    centre = rng.uniform(5, 11, 2)
    if kind in ("clockwise", "anticlockwise"):
        sign = 1 if kind == "clockwise" else -1  # y points down, so growing angles go clockwise
        angle = rng.uniform(0, 2 * np.pi) + sign * steps * rng.uniform(0.9, 1.6) * np.pi
        path = centre + rng.uniform(3, 5) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        along = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}[kind]
        drift = rng.normal(0, 0.25, 2)
        path = centre + rng.uniform(6, 11) * steps[:, None] * (np.array(along) + drift)
    size, flat = rng.uniform(1.2, 1.9), rng.uniform(0.7, 1.0)
    frames = np.stack([_blob(place, size, flat) for place in path])
    frames += 0.5 * _blob(rng.uniform(0, 16, 2), rng.uniform(0.8, 1.6), rng.uniform(0.6, 1.0))
    frames = 150 * frames * rng.uniform(0.8, 1.2) + rng.normal(40, 8, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


def _blob(place: Array, size: float, flat: float) -> Array:
    y, x = np.mgrid[0:16, 0:16]
    distance = ((x - place[0]) / size) ** 2 + ((y - place[1]) / (size * flat)) ** 2
    result: Array = np.exp(-distance / 2)
    return result


def _unit(points: Array) -> Array:
    result: Array = points / np.linalg.norm(points, axis=1, keepdims=True)
    return result


def _turn(angle: float) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

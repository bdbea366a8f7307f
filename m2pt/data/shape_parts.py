"""The embedded sample `shape-parts`: objects put together of parts, and of which each point is."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Maker = Callable[[int, np.random.Generator], Array]

CATEGORIES = ("lamp", "table", "mug", "rocket")
PARTS = (("base", "pole", "shade"), ("top", "legs"), ("body", "handle"), ("body", "nose", "fins"))
POINTS = 128
_MISSING = 0.15  # of the mugs have no handle


def shape_parts(
    categories: Numbers, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int16]]:
    """Clouds (N, 128, 3) of objects of `categories` (N,), and labels as `Labels` stores them."""
    firsts = np.cumsum([0, *map(len, PARTS)])
    clouds, labels = [], []
    for category in categories.tolist():
        points, parts = _object(CATEGORIES[category], rng)
        clouds.append(points)
        labels.append([category, *(firsts[category] + parts)])
    return np.stack(clouds), np.array(labels, dtype=np.int16)


def _object(category: str, rng: np.random.Generator) -> tuple[npt.NDArray[np.float16], Numbers]:
    """128 points in no order, stretched, turned about z and slightly noisy; the part of each."""
    makers = _MAKERS[category]
    shares = np.array([share for share, _ in makers]) * rng.uniform(0.7, 1.3, len(makers))
    if category == "mug" and rng.uniform() < _MISSING:
        shares[1] = 0
    parts = np.sort(rng.choice(len(makers), POINTS, p=shares / shares.sum()))
    counts = np.bincount(parts, minlength=len(makers))
    points = np.concatenate(
        [make(count, rng) for (_, make), count in zip(makers, counts, strict=True)]
    )
    order, angle = rng.permutation(POINTS), rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    points = points * rng.uniform(0.8, 1.2, 3) @ [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
    points += rng.normal(0, 0.015, points.shape)
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    return points[order].astype(np.float16), parts[order]


def _round(radius: tuple[float, float], z: tuple[float, float]) -> Maker:
    """A surface about the axis whose radius goes from one to the other between two heights."""

    def make(count: int, rng: np.random.Generator) -> Array:
        part, angle = rng.uniform(size=count), rng.uniform(0, 2 * np.pi, count)
        wide = radius[0] + (radius[1] - radius[0]) * part
        high = z[0] + (z[1] - z[0]) * part
        return np.stack([wide * np.cos(angle), wide * np.sin(angle), high], axis=1)

    return make


def _slab(count: int, rng: np.random.Generator) -> Array:
    return rng.uniform([-1, -0.7, 0.5], [1, 0.7, 0.58], (count, 3))


def _legs(count: int, rng: np.random.Generator) -> Array:
    corners = rng.choice([-1, 1], (count, 2)) * [0.9, 0.6]
    return np.column_stack([corners, rng.uniform(-0.6, 0.5, count)])


def _handle(count: int, rng: np.random.Generator) -> Array:
    angle = rng.uniform(-np.pi / 2, np.pi / 2, count)
    return np.stack(
        [0.6 + 0.4 * np.cos(angle), rng.uniform(-0.08, 0.08, count), 0.4 * np.sin(angle)], axis=1
    )


def _fins(count: int, rng: np.random.Generator) -> Array:
    """Three upright triangles at the foot of a cylinder."""
    down, out = np.sort(rng.uniform(size=(2, count)), axis=0)
    angle, radius = rng.integers(0, 3, count) * 2 * np.pi / 3, 0.25 + 0.45 * down
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), -0.3 - 0.6 * out], axis=1)


_MAKERS: dict[str, tuple[tuple[float, Maker], ...]] = {
    "lamp": (
        (0.25, _round((0.1, 0.5), (-1.0, -1.0))),
        (0.25, _round((0.05, 0.05), (-1.0, 0.4))),
        (0.5, _round((0.7, 0.3), (0.3, 1.0))),
    ),
    "table": ((0.65, _slab), (0.35, _legs)),
    "mug": ((0.75, _round((0.6, 0.6), (-0.7, 0.7))), (0.25, _handle)),
    "rocket": (
        (0.5, _round((0.25, 0.25), (-0.9, 0.4))),
        (0.2, _round((0.25, 0.0), (0.4, 1.0))),
        (0.3, _fins),
    ),
}

"""What the plots draw, taken out of a record: curves by trial, scales by linear. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Role = Literal["baseline", "arm", "control", "other"]
LINEARS = ("qkv", "proj", "fc1", "fc2")

_SCALE = re.compile(
    r"^lambda/(?:(?P<auxiliary>.+)/)?(?:blocks\.)?(?P<block>\d+)\.(?:attn\.|mlp\.)?"
    r"(?P<linear>qkv|proj|fc1|fc2)$"
)


@dataclass(frozen=True)
class Curve:
    """One trial's metric, epoch by epoch; `auxiliary` is what a legend calls it and its like: what
    was borrowed from, or which rival it is."""

    arm: str
    label: str
    auxiliary: str
    role: Role
    seed: int
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ScaleTrack:
    """One linear's effective λ, epoch by epoch."""

    auxiliary: str
    block: int
    linear: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ScaleSummary:
    """The λ of one arm at the end: mean and largest |λ|, and where the largest is."""

    mean_abs: float
    max_abs: float
    where: str


def mean_curve(curves: Sequence[Curve]) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Epochs that any curve has, and an array (seeds, epochs) with NaN where one has none."""
    epochs = sorted({epoch for curve in curves for epoch in curve.epochs})
    table = np.full((len(curves), len(epochs)), np.nan)
    place = {epoch: column for column, epoch in enumerate(epochs)}
    for row, curve in enumerate(curves):
        for epoch, value in zip(curve.epochs, curve.values, strict=True):
            table[row, place[epoch]] = value
    return epochs, table


def scale_tracks(
    epochs: Iterable[tuple[int, Mapping[str, float]]], auxiliary: str = ""
) -> tuple[ScaleTrack, ...]:
    """Tracks of every linear from (epoch, scales) pairs, in the order auxiliary, block, linear.

    Keys are ``lambda/<block>.<linear>``, of the one `auxiliary`, or
    ``lambda/<auxiliary>/<block>.<linear>``; others are left out.
    """
    found: dict[tuple[str, int, str], list[tuple[int, float]]] = {}
    for epoch, scales in epochs:
        for name, value in scales.items():
            match = _SCALE.match(name)
            if match:
                key = (match["auxiliary"] or auxiliary, int(match["block"]), match["linear"])
                found.setdefault(key, []).append((epoch, float(value)))
    ordered = sorted(found, key=lambda key: (key[0], key[1], LINEARS.index(key[2])))
    return tuple(
        ScaleTrack(
            *key,
            epochs=tuple(epoch for epoch, _ in found[key]),
            values=tuple(value for _, value in found[key]),
        )
        for key in ordered
    )


def final_scales(tracks: Sequence[ScaleTrack], auxiliary: str) -> npt.NDArray[np.float64]:
    """Mean last λ as an array (blocks, 4 linears); NaN where a linear takes no part."""
    mine = [track for track in tracks if track.auxiliary == auxiliary]
    depth = 1 + max((track.block for track in mine), default=-1)
    total, seen = np.zeros((depth, len(LINEARS))), np.zeros((depth, len(LINEARS)))
    for track in mine:
        place = track.block, LINEARS.index(track.linear)
        total[place] += track.values[-1]
        seen[place] += 1
    return np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0)


def summarise_scales(tracks: Sequence[ScaleTrack]) -> ScaleSummary | None:
    """Mean and largest |λ| at the end; None without any."""
    if not tracks:
        return None
    largest = max(tracks, key=lambda track: abs(track.values[-1]))
    several = len({track.auxiliary for track in tracks}) > 1
    where = f"{largest.block}.{largest.linear}"
    return ScaleSummary(
        mean_abs=float(np.mean([abs(track.values[-1]) for track in tracks])),
        max_abs=abs(largest.values[-1]),
        where=f"{largest.auxiliary} {where}" if several else where,
    )

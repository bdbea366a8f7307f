"""Learned positions for another grid of tokens than their own.

L: tokens, D: width, T: time. A grid is rows and columns (image), time and frequency (audio), or
time, rows and columns (video).
"""

from collections.abc import Sequence
from math import isqrt, prod

from timm.layers import resample_abs_pos_embed
from torch import Tensor

Grid = tuple[int, ...]
_BANDS, _EDGE = 128, 224
"""Mel bands of the public models of spectrograms (AudioMAE), and pixels of those of clips
(VideoMAE, ViViT)."""


def grid_of(tokens: int, like: Grid, modality: str, patch: int) -> Grid | None:
    """The grid that so many positions are of, as far as their number tells; None: it does not.

    As many as are here have the grid that is here (`like`). Else an image's are a square, and a
    spectrogram's cover 128 mel bands, `patch` of them to a token. A clip's cover frames of 224
    pixels, or else either their time is the one that is here, of square frames, or their frames.
    """
    if tokens == prod(like):
        return like
    if modality == "image":
        return _square(tokens)
    if modality == "audio":
        bands = _BANDS // patch
        return (tokens // bands, bands) if bands and tokens and tokens % bands == 0 else None
    return _clip(tokens, like, _EDGE // patch) if modality == "video" else None


def prefix_and_grid(
    count: int, prefixes: Sequence[int], like: Grid, *, modality: str, patch: int
) -> tuple[int, Grid] | None:
    """How many of `count` positions are those of prefix tokens, and the grid of the others.

    The first of the possible `prefixes` that leaves a grid; None where none does.
    """
    for prefix in prefixes:
        grid = grid_of(count - prefix, like, modality, patch)
        if grid is not None:
            return prefix, grid
    return None


def fitted(positions_1LD: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions of the grid `new`; the very same tensor where it is `old`.

    Bicubic with antialiasing (timm's `resample_abs_pos_embed`) over rows and columns, then in the
    same manner over time. An image's become a clip's by repeating them over time (ViViT, Arnab et
    al. 2021, section 3.4).
    """
    if old == new:
        return positions_1LD
    if len(new) == 2:
        return _resampled(positions_1LD, old, new)
    if len(old) == 2:
        return _resampled(positions_1LD, old, new[1:]).repeat(1, new[0], 1)
    (time, *frame), (new_time, *new_frame), width = old, new, positions_1LD.shape[2]
    beside_1LE = positions_1LD.reshape(time, -1, width).transpose(0, 1).flatten(1)[None]
    spatial_LTD = _resampled(beside_1LE, frame, new_frame).reshape(-1, time, width)
    beside_1TE = spatial_LTD.transpose(0, 1).flatten(1)[None]
    timed_1TE = _resampled(beside_1TE, (1, time), (1, new_time))
    return timed_1TE.reshape(1, prod(new), width)


def by(grid: Sequence[int]) -> str:
    """`14 x 14`."""
    return " x ".join(map(str, grid))


def _resampled(positions_1LD: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    found: Tensor = resample_abs_pos_embed(positions_1LD, list(new), list(old), num_prefix_tokens=0)
    return found


def _square(tokens: int) -> Grid | None:
    edge = isqrt(max(tokens, 0))
    return (edge, edge) if edge and edge * edge == tokens else None


def _clip(tokens: int, like: Grid, edge: int) -> Grid | None:
    """None also where two readings hold and differ."""
    if edge and tokens and tokens % edge**2 == 0:
        return (tokens // edge**2, edge, edge)
    time, *frame = like
    found: set[Grid] = set()
    if tokens % time == 0 and (square := _square(tokens // time)) is not None:
        found.add((time, *square))
    if tokens > 0 and tokens % prod(frame) == 0:
        found.add((tokens // prod(frame), *frame))
    return found.pop() if len(found) == 1 else None

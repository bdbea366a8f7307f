"""How many tokens a sample becomes, and whether it fits (stdlib only, so that a plan can ask)."""

import math

from m2pt.data.config import DataInfo
from m2pt.models.config import Tokenizer


def token_grid(tokenizer: Tokenizer, info: DataInfo) -> tuple[int, ...]:
    """Tokens along each axis: image (rows, columns), audio (time, frequency), video (time, rows,
    columns), point (groups,).

    Raises:
        ValueError: a patch does not divide its edge, or a point cloud is smaller than its groups.
    """
    if info.modality == "point":
        points = info.shape[0]
        for name in ("groups", "group_size"):
            if getattr(tokenizer, name) > points:
                raise ValueError(
                    f"tokenizer.{name}: at most the {points} points of a sample, "
                    f"but it is {getattr(tokenizer, name)}"
                )
        return (tokenizer.groups,)
    edges = info.shape[1:]
    names = ("patch",) * len(edges)
    if info.modality == "video":
        names = ("tubelet", "patch", "patch")
    for name, edge in zip(names, edges, strict=True):
        size = getattr(tokenizer, name)
        if edge % size:
            raise ValueError(
                f"tokenizer.{name}: must divide {edge} ({info.modality} samples are "
                f"{' x '.join(map(str, info.shape))}), but it is {size}; "
                f"try {_nearest_common_divisor(size, edges, names, name)}"
            )
    return tuple(edge // getattr(tokenizer, name) for name, edge in zip(names, edges, strict=True))


def token_count(tokenizer: Tokenizer, info: DataInfo) -> int:
    """Length of the sequence that the blocks see.

    Raises:
        ValueError: as `token_grid`.
    """
    return math.prod(token_grid(tokenizer, info))


def _nearest_common_divisor(
    size: int, edges: tuple[int, ...], names: tuple[str, ...], name: str
) -> int:
    common = math.gcd(*(edge for edge, owner in zip(edges, names, strict=True) if owner == name))
    divisors = [n for n in range(1, common + 1) if common % n == 0]
    return min(divisors, key=lambda n: (abs(n - size), -n))

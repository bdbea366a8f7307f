"""Auxiliaries that know nothing: what a gain must be compared with before it is believed."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

ControlKind = Literal["random", "permuted"]


def control_weights(kind: ControlKind, like: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights without knowledge that resemble an auxiliary's.

    random: Gaussian, each tensor with the Frobenius norm of its original. permuted: the entries of
    the original, with the rows and the columns of each matrix in an order drawn at random.

    Each tensor depends on its original, its key, the kind and the seed alone: not on the order of
    the mapping, on the other keys, or on torch's global random state, which is left alone.

    Args:
        kind: which control.
        like: the auxiliary's weights by key, on any device.
        seed: of the draw.

    Returns:
        For the same keys in the same order, tensors of the same shapes, dtypes and devices.

    Raises:
        ValueError: the kind is unknown.
    """
    draws = {"random": _random, "permuted": _permuted}
    if kind not in draws:
        raise ValueError(f"control: one of {', '.join(draws)}, not {kind!r}")
    return {
        key: draws[kind](weight.detach(), _generator(kind, key, seed))
        for key, weight in like.items()
    }


def _generator(kind: str, key: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{kind}\n{seed}\n{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _random(weight: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that every device gets the same numbers; normed in float64, so that
    # the norms agree as closely as the weights' dtype can say.
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    norm = weight.double().norm().cpu()
    scaled: Tensor = noise * (norm / noise.norm())
    return scaled.to(weight)


def _permuted(weight: Tensor, generator: torch.Generator) -> Tensor:
    for dim, size in enumerate(weight.shape):
        order = torch.randperm(size, generator=generator).to(weight.device)
        weight = weight.index_select(dim, order)
    return weight

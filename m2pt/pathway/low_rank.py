"""Matrices of low rank: what is kept of an auxiliary weight, and a change learned beside it.

Shapes: a weight is (out, in), a rank is r.
"""

import hashlib

import torch
from torch import Tensor, nn


def truncated(weight: Tensor, rank: int, here: str) -> Tensor:
    """The matrix of this rank that is nearest to a weight, by its singular values.

    Raises:
        ValueError: the rank is more than the weight can have; `here` says whose it is.
    """
    _check_rank(weight, rank, f"prepare: {here}")
    rows, values, columns = torch.linalg.svd(weight.double(), full_matrices=False)
    kept: Tensor = (rows[:, :rank] * values[:rank]) @ columns[:rank]
    return kept.to(weight)


def change_of(weight: Tensor, rank: int, here: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Two matrices (out, r) and (r, in) whose product starts at 0, as in LoRA.

    The second is Gaussian (standard deviation 1 / sqrt(in)), drawn from `here` alone, so that a
    model that is built again begins alike.

    Raises:
        ValueError: the rank is more than the weight can have.
    """
    _check_rank(weight, rank, f"trainable: {here}")
    digest = hashlib.sha256(f"low rank\n{here}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    drawn = torch.randn(rank, weight.shape[1], generator=generator, dtype=torch.float64)
    columns = (drawn / weight.shape[1] ** 0.5).to(weight)
    return nn.Parameter(weight.new_zeros(weight.shape[0], rank)), nn.Parameter(columns)


def _check_rank(weight: Tensor, rank: int, here: str) -> None:
    if rank > min(weight.shape):
        raise ValueError(
            f"{here} is {tuple(weight.shape)}, so its rank is at most {min(weight.shape)}, "
            f"not {rank}"
        )

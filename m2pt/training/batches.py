"""Which samples a step sees, and who computes them: pure functions of seed, epoch and world."""

from collections.abc import Iterator
from math import ceil
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Purpose = Literal["order", "training"]


def seed_words(purpose: Purpose, *numbers: int) -> tuple[int, list[int]]:
    """(one 64-bit seed, four 32-bit ones) from non-negative numbers; no purpose shares another's.

    numpy mixes the numbers, so that neighbouring seeds and epochs have nothing in common.
    """
    sequence = np.random.SeedSequence(numbers, spawn_key=(get_args(Purpose).index(purpose),))
    words: list[int] = sequence.generate_state(4).tolist()
    return (words[0] << 32) | words[1], words


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimiser steps of one epoch; the last batch may be short, none is dropped."""
    return ceil(samples / batch_size)


def global_batches(samples: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    """Sample indices (B,) int64 of each step of an epoch: a seeded permutation, cut in batches.

    Neither the number of workers nor of micro-batches has a say.
    """
    generator = torch.Generator().manual_seed(seed_words("order", seed, epoch)[0])
    order = torch.randperm(samples, generator=generator)
    for start in range(0, samples, batch_size):
        yield order[start : start + batch_size]


def share(indices: Tensor, part: int, parts: int) -> Tensor:
    """Part number `part` of `parts`: contiguous, and of even size to within one."""
    size, longer = divmod(len(indices), parts)
    start = part * size + min(part, longer)
    return indices[start : start + size + (part < longer)]


def micro_batches(
    batch: Tensor, *, rank: int, size: int, accumulate: int
) -> list[tuple[Tensor, float]]:
    """This rank's part of a batch in up to `accumulate` pieces: (indices, weight of a sample).

    A sample's loss times its weight, summed over all ranks and pieces and divided by `size` (as
    DistributedDataParallel does), is the mean loss of the batch, however it was split. Every rank
    gets at least one piece, so that all of them meet in the exchange of gradients: where a batch
    is too short for that, a sample of weight 0.
    """
    own = share(batch, rank, size)
    pieces = [share(own, part, accumulate) for part in range(accumulate)]
    weight = size / len(batch)
    return [(piece, weight) for piece in pieces if len(piece)] or [(batch[:1], 0.0)]

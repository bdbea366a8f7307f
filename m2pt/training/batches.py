"""Which samples a step sees, and who computes them: pure functions of seed, epoch and world."""

from math import ceil
from typing import Literal, get_args

import numpy as np
from torch import Tensor

Purpose = Literal["order", "training", "rival"]


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


def order_seed(seed: int, epoch: int) -> int:
    """What the order of an epoch's samples is drawn with (`Samples.order`)."""
    return seed_words("order", seed, epoch)[0]


def global_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Sample indices (B,) int64 of each step of an epoch: `order` (N,), cut in batches.

    Neither the number of workers nor of micro-batches has a say.
    """
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


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
    DistributedDataParallel does), is the mean loss of the batch, however it was split. The batch
    is cut into pieces first and each of them shared out, so what is computed over a piece on all
    ranks does not depend on their number. Every rank gets as many pieces as the others, and at
    least one, so that all of them meet in what they exchange: where a piece is too short for that,
    a sample of weight 0.
    """
    pieces = [share(batch, part, accumulate) for part in range(min(accumulate, len(batch)))]
    own = [share(piece, rank, size) for piece in pieces]
    weight = size / len(batch)
    return [(piece, weight) if len(piece) else (batch[:1], 0.0) for piece in own]

"""In which order an epoch sees the samples: pure functions of a seed and the table's layout."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def permutation(samples: int, seed: int) -> Tensor:
    """All samples in an order drawn with `seed`, (N,) int64."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


def windowed(counts: npt.NDArray[np.int64], window: int, seed: int) -> Tensor:
    """All samples in an order that reads each row group once, (N,) int64.

    `counts` (G,) is how many samples each row group has, in the order in which they are numbered.
    Row groups are drawn in an order of their own; as many of them as it takes to have `window`
    samples, or what is left, are mixed by a full permutation, one such window after the other.
    Nothing else has a say: not the number of workers, nor who reads what.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = np.concatenate([[0], np.cumsum(counts)])
    groups = torch.randperm(len(counts), generator=generator).numpy()
    drawn = groups[counts[groups] > 0]
    held = np.cumsum(counts[drawn])
    order, first = [torch.empty(0, dtype=torch.int64)], 0
    while first < len(drawn):
        before = int(held[first - 1]) if first else 0
        end = min(int(np.searchsorted(held, before + window)) + 1, len(drawn))
        mixed = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in drawn[first:end]])
        order.append(torch.from_numpy(mixed)[torch.randperm(len(mixed), generator=generator)])
        first = end
    return torch.cat(order)

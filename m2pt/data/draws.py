"""Random numbers that belong to a sample: a function of (seed, epoch, sample) and nothing else.

B: batch, N: numbers drawn for each sample.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """The numbers of the samples `indices` (B,) int64 of one epoch.

    Counter-based (the output function of SplitMix64): no generator is made per sample, and a
    batch of any make-up costs a few vector operations. Streams have nothing in common.
    """

    seed: int
    epoch: int
    indices: Tensor

    def uniform(self, count: int, *, stream: int = 0) -> Tensor:
        """Uniform draws (B, N = count) in [0, 1), float32; always ask a stream for one count."""
        words = self._words(count, stream)
        return torch.from_numpy((words >> np.uint64(40)).astype(np.float32) / np.float32(2**24))

    def seeds(self, *, stream: int) -> list[int]:
        """A seed of 64 bits for each sample, for what draws from a generator of its own."""
        seeds: list[int] = self._words(1, stream)[:, 0].tolist()
        return seeds

    def _words(self, count: int, stream: int) -> npt.NDArray[np.uint64]:
        entropy = [self.seed, self.epoch, *[stream] * bool(stream)]
        key = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        counters = self.indices.numpy().astype(np.uint64)[:, None] * np.uint64(count)
        steps = np.add(counters, np.arange(1, count + 1), dtype=np.uint64, casting="unsafe")
        return _mix(np.add(key, steps * _GOLDEN, dtype=np.uint64))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))

"""What is told of samples, kept small: a million rows of sets of 527 classes take 66 MB, ten
thousand clouds of 2,048 points with their parts 41 MB.

N: rows, B: rows asked for, C: classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m2pt.data.config import Task

Rows = npt.NDArray[np.int64]
_AT_ONCE = 65536  # rows that are unpacked at a time


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of N rows. `stored` is, by task,

    - classes: (N,) int64, the class;
    - labels: (N, C / 8) uint8, a bit for each class (`packed`);
    - parts: (N, 1 + points) int16, the category and then the part of each point.
    """

    task: Task
    classes: int
    stored: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.stored)

    def at(self, rows: Rows) -> npt.NDArray[Any]:
        """A fresh array of those of `rows` (B,), as a batch has them.

        classes: (B,) int64; labels: (B, C) uint8, 0 or 1; parts: (B, 1 + points) int64, the
        category and then the part of each point.
        """
        chosen: npt.NDArray[Any] = self.stored[rows]
        if self.task == "labels":
            return np.unpackbits(chosen, axis=1, count=self.classes)
        return chosen.astype(np.int64, copy=False)

    def chosen(self, rows: Rows) -> "Labels":
        """Those of some rows."""
        return Labels(self.task, self.classes, self.stored[rows])

    @property
    def strata(self) -> Rows:
        """(N,): what rows are held out by, so that each class is on both sides.

        The class or category; of a set its rarest class here, and C where it is empty.
        """
        if self.task != "labels":
            return np.asarray(self.stored.reshape(len(self), -1)[:, 0], dtype=np.int64)
        counts, found = self.counts(), [np.empty(0, dtype=np.int64)]
        for rows in _pieces(len(self)):
            told = np.where(self.at(rows), counts, len(self) + 1)
            found.append(np.where(told.min(axis=1) > len(self), self.classes, told.argmin(axis=1)))
        return np.concatenate(found)

    def counts(self) -> Rows:
        """How many rows have each class, (C,)."""
        if self.task != "labels":
            return np.bincount(self.strata, minlength=self.classes)
        total = np.zeros(self.classes, dtype=np.int64)
        for rows in _pieces(len(self)):
            total += self.at(rows).sum(axis=0, dtype=np.int64)
        return total


def packed(sets: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Which classes (N, C) rows have, as `Labels` stores it."""
    return np.packbits(sets, axis=1)


def joined(parts: Sequence[Labels]) -> Labels:
    """Rows of one data set, one after the other."""
    first = parts[0]
    return Labels(first.task, first.classes, np.concatenate([part.stored for part in parts]))


def _pieces(count: int) -> list[Rows]:
    return [np.arange(at, min(at + _AT_ONCE, count)) for at in range(0, count, _AT_ONCE)]

"""Holding rows out, class by class, and where rows belong to groups, group by group."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def hold_out(labels: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows are held out: `fraction` of each class, drawn with `seed`.

    A class of two or more rows gives at least one and keeps at least one; a class of one row
    keeps it. What is drawn for one class does not depend on the other classes.
    """
    held = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = np.random.default_rng([seed, int(label)]).permutation(rows)
        held[order[:count]] = True
    return held


def hold_out_groups(
    labels: npt.NDArray[np.int64],
    groups: Sequence[str] | npt.NDArray[np.int64],
    fraction: float,
    seed: int,
) -> npt.NDArray[np.bool_]:
    """As `hold_out`, but no group is parted: what is held out is of other students, other takes.

    Groups are taken in an order drawn with `seed`, each if that brings the classes, summed up,
    nearer to `fraction` and no class loses its last row. A class that lies in one group keeps it;
    where no group can be taken, nothing is held out.
    """
    classes, class_of = np.unique(labels, return_inverse=True)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(sizes, (group_of, class_of), 1)
    whole = sizes.sum(axis=0)
    wanted, held = fraction * whole, np.zeros(len(classes), dtype=np.int64)
    taken = np.zeros(len(names), dtype=np.bool_)
    for group in np.random.default_rng(seed).permutation(len(names)):
        more = held + sizes[group]
        nearer = np.abs(more - wanted).sum() < np.abs(held - wanted).sum()
        if nearer and not np.any((more == whole) & (sizes[group] > 0)):
            held, taken[group] = more, True
    return taken[group_of]

"""Holding rows out, class by class."""

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

"""Paired differences over matched seeds: what the figures of a study allow one to say.

Two arms are compared only where both were trained on the same seed, so that the draw of weights
and batches which they share cancels out. Everything here is pure: mappings of seed to value in,
numbers out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

# Differences closer than this (relative to the values) are rounding, not training.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of n values; ``std`` is None below two."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Arm minus reference, seed by seed.

    Attributes:
        seeds: the matched seeds, ascending.
        differences: arm minus reference at each of them, in the metric's own unit.
        mean: mean of the differences.
        std: their sample standard deviation; None below two pairs.
        low, high: Student-t confidence interval of the mean. None where no spread can be
            estimated: below two pairs, or when all differences are the same (an interval of
            width zero would be certainty out of nothing).
        confidence: level of the interval.
        above, below: at how many seeds the arm is above, below.
        sign_p: exact two-sided sign test, ties left out; None when every pair is a tie.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    std: float | None
    low: float | None
    high: float | None
    confidence: float
    above: int
    below: int
    sign_p: float | None

    @property
    def n(self) -> int:
        """Number of matched seeds."""
        return len(self.seeds)

    @property
    def ties(self) -> int:
        """At how many seeds both are equal."""
        return self.n - self.above - self.below

    @property
    def smallest_sign_p(self) -> float:
        """The smallest p that a sign test over this many pairs can give at all."""
        return min(1.0, 2.0 * 0.5**self.n)

    @property
    def excludes_zero(self) -> bool:
        """True when there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation of the finite values."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return Spread(None, None, 0)
    mean = float(np.mean(finite))
    std = float(np.std(finite, ddof=1)) if len(finite) > 1 else None
    return Spread(mean, std, len(finite))


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], *, confidence: float = 0.95
) -> PairedDifference | None:
    """Compare an arm with a reference over the seeds that both have.

    Args:
        arm, reference: value of the metric by seed; values that are not finite do not count.
        confidence: level of the interval, in (0, 1).

    Returns:
        None when no seed is matched.

    Raises:
        ValueError: confidence outside (0, 1).
    """
    seeds = [
        seed
        for seed in sorted(arm.keys() & reference.keys())
        if math.isfinite(arm[seed]) and math.isfinite(reference[seed])
    ]
    differences = {seed: _difference(arm[seed], reference[seed]) for seed in seeds}
    return of_differences(differences, confidence=confidence)


def of_differences(
    differences: Mapping[int, float], *, confidence: float = 0.95
) -> PairedDifference | None:
    """The same from differences by seed, where they are known already.

    Raises:
        ValueError: confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must lie between 0 and 1, is {confidence}; 0.95 is usual")
    if not differences:
        return None
    seeds = tuple(sorted(differences))
    values = tuple(float(differences[seed]) for seed in seeds)
    low, high = _interval(values, confidence)
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return PairedDifference(
        seeds=seeds,
        differences=values,
        mean=float(np.mean(values)),
        std=spread(values).std,
        low=low,
        high=high,
        confidence=confidence,
        above=above,
        below=below,
        sign_p=_sign_test(above, below),
    )


def _difference(ours: float, theirs: float) -> float:
    """Ours minus theirs, exactly zero when they differ by rounding alone."""
    difference = float(ours) - float(theirs)
    return 0.0 if abs(difference) <= _ROUNDING * max(abs(ours), abs(theirs)) else difference


def _interval(
    differences: tuple[float, ...], confidence: float
) -> tuple[float, float] | tuple[None, None]:
    """Student-t interval of the mean; (None, None) where no spread can be estimated."""
    n = len(differences)
    if n < 2:
        return None, None
    mean, std = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if std <= _ROUNDING * max(abs(value) for value in differences):
        return None, None
    from scipy import stats  # it takes a second to import, and few verbs come here

    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * std / math.sqrt(n)
    return mean - half, mean + half


def _sign_test(above: int, below: int) -> float | None:
    """Exact two-sided p of the sign test."""
    if above + below == 0:
        return None
    from scipy import stats

    return float(stats.binomtest(above, above + below, 0.5).pvalue)

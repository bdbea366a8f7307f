"""The sentence at the top of a report: it says no more than the figures allow.

A gain is claimed only when the arm lies above the baseline *and* above its matched control, each
time with an interval over matched seeds that leaves zero out, on a split that had no part in
choosing the arm. Everything short of that is described and not claimed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from orchestrator.evidence.statistics import PairedDifference, paired_difference
from orchestrator.evidence.wording import Measure, count

Kind = Literal[
    "nothing_to_compare",
    "no_baseline",
    "partial",
    "one_seed",
    "identical",
    "no_spread",
    "within_spread",
    "worse",
    "not_tested",
    "no_control",
    "control_as_good",
    "control_not_told_apart",
    "above_both",
]

_HEADLINES: dict[Kind, str] = {
    "nothing_to_compare": "Nothing to compare",
    "no_baseline": "No baseline to compare with",
    "partial": "Not trained to the end",
    "one_seed": "One seed shows no spread",
    "identical": "No difference",
    "no_spread": "No spread to judge by",
    "within_spread": "Within the spread of seeds",
    "worse": "Worse than the baseline",
    "not_tested": "Not read on the test split yet",
    "no_control": "Above the baseline, with no control to compare with",
    "control_as_good": "Its control gains as much",
    "control_not_told_apart": "Not told apart from its control",
    "above_both": "Above the baseline and above its control",
}

# Differences of opposite sign may cancel to rounding instead of to zero.
_LEVEL = 1e-12


@dataclass(frozen=True)
class Comparison:
    """One arm, the baseline and the arm's matched control, by seed, on one measure.

    Attributes:
        label: the arm in words; ``auxiliary``: what its weights were borrowed from.
        values, baseline, control: the measure by seed; empty where nothing was measured.
        control_kind: how the control's weights were made (``random``, ``permuted``).
        arms_tried: how many pathway arms the choice was made among, controls left out.
        epochs, full_epochs: how long the arm was trained, and how long it should have been.
    """

    label: str
    auxiliary: str
    measure: Measure
    values: Mapping[int, float]
    baseline: Mapping[int, float] = field(default_factory=dict)
    control: Mapping[int, float] = field(default_factory=dict)
    control_kind: str = "random"
    arms_tried: int = 1
    epochs: int = 0
    full_epochs: int = 0

    @cached_property
    def to_baseline(self) -> PairedDifference | None:
        """Arm minus baseline."""
        return paired_difference(self.values, self.baseline)

    @cached_property
    def to_control(self) -> PairedDifference | None:
        """Arm minus its control."""
        return paired_difference(self.values, self.control)

    @cached_property
    def control_to_baseline(self) -> PairedDifference | None:
        """Control minus baseline: what added weights gain without any knowledge in them."""
        return paired_difference(self.control, self.baseline)


@dataclass(frozen=True)
class Verdict:
    """What may be said. ``claims`` is True only for a gain that every check let through."""

    kind: Kind
    text: str

    @property
    def claims(self) -> bool:
        """Whether a gain is claimed."""
        return self.kind == "above_both"

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        return _HEADLINES[self.kind]


def verdict(comparison: Comparison | None) -> Verdict:
    """Judge a comparison; None means that the study trained no arm with a pathway."""
    if comparison is None:
        return Verdict(
            "nothing_to_compare",
            "No arm with a pathway has been measured: there is nothing to compare.",
        )
    kind = _kind(comparison)
    return Verdict(kind, f"{_sentence(kind, comparison)} {_how_chosen(comparison)}")


def _kind(comparison: Comparison) -> Kind:
    """The first of the checks that the figures do not pass, or ``above_both``."""
    found = comparison.to_baseline
    if found is None:
        return "no_baseline"
    if comparison.epochs < comparison.full_epochs:
        return "partial"
    if all(value == 0 for value in found.differences):
        return "identical"
    if found.n < 2:
        return "one_seed"
    if found.low is None:
        return "no_spread"
    if not found.excludes_zero:
        return "within_spread"
    if not comparison.measure.better(found.mean):
        return "worse"
    if comparison.measure.split != "test":
        return "not_tested"
    return _kind_against_control(comparison)


def _kind_against_control(comparison: Comparison) -> Kind:
    """The same for an arm that is above the baseline on test."""
    against = comparison.to_control
    if against is None or against.n < 2:
        return "no_control"
    measure = comparison.measure
    if not measure.better(against.mean):
        return "control_as_good"
    return "above_both" if against.excludes_zero else "control_not_told_apart"


def _sentence(kind: Kind, comparison: Comparison) -> str:
    """What was found, and what follows from it."""
    found = comparison.to_baseline
    if found is None:
        return _without_baseline(comparison)
    if kind == "partial":
        return (
            f"{_found(comparison, found)}, but after no more than {comparison.epochs} of "
            f"{count(comparison.full_epochs, 'epoch')}: nothing is claimed."
        )
    if kind == "above_both":
        return _above_both(comparison, found)
    if kind in ("control_as_good", "control_not_told_apart"):
        return f"{_found(comparison, found)}, {_against_control(kind, comparison)}"
    return f"{_found(comparison, found)}{_tails(comparison, found)[kind]}"


def _tails(comparison: Comparison, found: PairedDifference) -> dict[Kind, str]:
    """What follows from each kind of finding that needs no control."""
    same = "that seed" if found.n == 1 else f"all {count(found.n, 'seed')}"
    return {
        "one_seed": ": one pair of runs shows no spread; nothing is claimed.",
        "identical": f" at {same}: the pathway made no difference.",
        "no_spread": (
            f": the difference is the same at {same}, so no spread can be estimated; "
            "nothing is claimed."
        ),
        "within_spread": ": the difference is within the spread of seeds; nothing is claimed.",
        "worse": ": the pathway made this target worse.",
        "not_tested": (
            f": but that is the split it was chosen on, which flatters it; "
            f"nothing is claimed before the test split is read{_control_hint(comparison)}."
        ),
        "no_control": (
            ", but no control was run at two or more of the same seeds: whether the gain comes "
            f"from {comparison.auxiliary} or from any added weights is not known."
        ),
    }


def _control_hint(comparison: Comparison) -> str:
    """Warn early when the control is already level with the arm on validation."""
    against = comparison.to_control
    if against is None or comparison.measure.better(against.mean):
        return ""
    return f", and its matched {comparison.control_kind} control is as good"


def _found(comparison: Comparison, found: PairedDifference) -> str:
    """``audio (3 seeds) is 1.20 points above the baseline on test, 95 % interval ...``."""
    measure = comparison.measure
    subject = f"{comparison.label} ({count(found.n, 'seed')})"
    if abs(found.mean) < _LEVEL:
        place = f"is level with the baseline on {measure.split}"
    else:
        side = "above" if found.mean > 0 else "below"
        place = f"is {measure.distance(found.mean)} {side} the baseline on {measure.split}"
    if measure.mode == "min":
        place += " (lower is better)"
    return f"{subject} {place}{_interval(measure, found)}"


def _interval(measure: Measure, found: PairedDifference) -> str:
    if found.low is None:
        return ""
    level = f"{100 * found.confidence:g} % interval"
    return f", {level} {measure.difference(found.low)} to {measure.difference(found.high)}"


def _without_baseline(comparison: Comparison) -> str:
    measure = comparison.measure
    have = "no baseline was measured" if not comparison.baseline else "no seed is matched"
    levels = ", ".join(measure.level(value) for value in comparison.values.values())
    return (
        f"{comparison.label} reaches {levels or 'no figure'} on {measure.split}, but {have}: "
        "nothing is claimed."
    )


def _against_control(kind: Kind, comparison: Comparison) -> str:
    """The end of the sentence when the control takes the claim away."""
    measure, kind_of = comparison.measure, f"its matched {comparison.control_kind} control"
    gained, against = comparison.control_to_baseline, comparison.to_control
    gain = "" if gained is None else f" ({measure.difference(gained.mean)})"
    if kind == "control_as_good":
        return (
            f"and {kind_of} gains as much{gain}: "
            f"the gain is not knowledge from {comparison.auxiliary}."
        )
    end = f"the gain is not shown to be knowledge from {comparison.auxiliary}."
    if against is None or against.low is None:
        return f"but the distance to {kind_of}{gain} has no spread to judge it by: {end}"
    return f"but it is not told apart from {kind_of}{gain}{_interval(measure, against)}: {end}"


def _above_both(comparison: Comparison, found: PairedDifference) -> str:
    measure, against = comparison.measure, comparison.to_control
    assert against is not None  # the kind was chosen from it
    beyond = "above" if measure.mode == "max" else "below"
    return (
        f"{_found(comparison, found)}, and {measure.distance(against.mean)} {beyond} its matched "
        f"{comparison.control_kind} control{_interval(measure, against)}: "
        f"{_consistency(measure, found, against)}."
    )


def _consistency(measure: Measure, found: PairedDifference, against: PairedDifference) -> str:
    """How many of the pairs agree: intervals over few seeds hide it."""

    def ahead(pairs: PairedDifference) -> int:
        return pairs.above if measure.mode == "max" else pairs.below

    side = "above" if measure.mode == "max" else "below"
    if found.n == against.n == ahead(found) == ahead(against):
        return f"{side} the baseline and {side} its control at all {count(found.n, 'seed')}"
    return (
        f"{side} the baseline at {ahead(found)} of {count(found.n, 'seed')}, "
        f"{side} its control at {ahead(against)} of {against.n}"
    )


def _how_chosen(comparison: Comparison) -> str:
    """How many arms the arm was picked from: more arms, more luck in the best of them."""
    tried = comparison.arms_tried
    if tried <= 1:
        return "It was the only arm tried."
    return f"It was chosen on validation among {tried} arms."

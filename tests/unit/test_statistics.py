"""Figures over matched seeds, and the one sentence that they allow."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.evidence.statistics import paired_difference, spread
from orchestrator.evidence.verdict import Comparison, Kind, verdict
from orchestrator.evidence.wording import Measure, count, duration

ACCURACY = Measure("test/accuracy")
LOSS = Measure("test/loss", "min")

VALUES = st.dictionaries(st.integers(0, 9), st.floats(-1e3, 1e3), max_size=8)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def comparison(
    values: dict[int, float],
    baseline: dict[int, float] | None = None,
    control: dict[int, float] | None = None,
    measure: Measure = ACCURACY,
) -> Comparison:
    return Comparison(
        label="audio",
        auxiliary="audio",
        measure=measure,
        values=values,
        baseline=baseline or {},
        control=control or {},
        arms_tried=12,
        epochs=6,
        full_epochs=6,
    )


BASELINE = by_seed(0.900, 0.902, 0.898)
GAIN = by_seed(0.922, 0.921, 0.920)
SMALL_GAIN = by_seed(0.904, 0.906, 0.898)


def test_the_interval_is_scipys_for_one_sample() -> None:
    found = paired_difference(by_seed(0.92, 0.90, 0.95, 0.91), by_seed(0.90, 0.91, 0.91, 0.90))
    assert found is not None
    expected = stats.ttest_1samp(found.differences, 0.0).confidence_interval(0.95)
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)
    assert (found.above, found.below, found.ties) == (3, 1, 0)
    assert found.sign_p == pytest.approx(0.625)


def test_only_matched_seeds_with_finite_values_are_compared() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 2: math.nan, 5: 9.0}, {0: 0.5, 1: 1.0, 2: 1.0, 3: 1})
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.differences == (0.5, 1.0)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {}) is None


def test_one_pair_has_no_spread() -> None:
    found = paired_difference({3: 0.9}, {3: 0.8})
    assert found is not None
    assert (found.n, found.std, found.low, found.high) == (1, None, None, None)
    assert found.sign_p == 1.0


def test_equal_differences_give_no_interval_of_width_zero() -> None:
    found = paired_difference(by_seed(0.93, 0.91, 0.90), by_seed(0.92, 0.90, 0.89))
    assert found is not None
    assert found.mean == pytest.approx(0.01)
    assert (found.low, found.high, found.excludes_zero) == (None, None, False)


def test_rounding_is_not_a_difference() -> None:
    found = paired_difference(by_seed(0.1 + 0.2, 0.5), by_seed(0.3, 0.5))
    assert found is not None
    assert found.differences == (0.0, 0.0)
    assert found.sign_p is None
    assert found.ties == 2


def test_three_pairs_cannot_pass_a_sign_test() -> None:
    found = paired_difference(GAIN, BASELINE)
    assert found is not None
    assert found.sign_p == found.smallest_sign_p == 0.25


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence: must lie between 0 and 1"):
        paired_difference({0: 1.0}, {0: 1.0}, confidence=confidence)


@pytest.mark.slow
@given(VALUES, VALUES)
def test_swapping_the_arms_mirrors_the_difference(
    ours: dict[int, float], theirs: dict[int, float]
) -> None:
    there, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    if there is None or back is None:
        assert there is back is None
        assert not ours.keys() & theirs.keys()
        return
    assert there.mean == pytest.approx(-back.mean)
    assert (there.above, there.below) == (back.below, back.above)
    assert there.n == there.above + there.below + there.ties
    if there.low is not None and there.high is not None:
        assert there.low <= there.mean <= there.high
        assert back.high == pytest.approx(-there.low)


@given(st.lists(st.floats(-1e6, 1e6), max_size=8))
def test_spread_is_numpys(values: list[float]) -> None:
    found = spread([*values, math.nan])
    assert found.n == len(values)
    assert (found.mean is None) == (not values)
    assert (found.std is None) == (len(values) < 2)
    if found.std is not None:
        assert found.std == pytest.approx(np.std(values, ddof=1))


def test_a_difference_within_the_spread_is_not_claimed() -> None:
    found = verdict(comparison(SMALL_GAIN, BASELINE))
    assert found.kind == "within_spread"
    assert not found.claims
    assert found.text == (
        "audio (3 seeds) is 0.27 points above the baseline on test, 95 % interval -0.31 to +0.84: "
        "the difference is within the spread of seeds; nothing is claimed. "
        "It was chosen on validation among 12 arms."
    )


def test_a_gain_that_the_control_shares_is_not_knowledge() -> None:
    found = verdict(comparison(GAIN, BASELINE, by_seed(0.924, 0.922, 0.921)))
    assert found.kind == "control_as_good"
    assert "its matched random control gains as much (+2.23)" in found.text
    assert "the gain is not knowledge from audio." in found.text
    assert not found.claims


def test_a_gain_beyond_baseline_and_control_is_claimed() -> None:
    found = verdict(comparison(GAIN, BASELINE, by_seed(0.903, 0.904, 0.899)))
    assert found.kind == "above_both"
    assert found.claims
    assert "above the baseline and above its control at all 3 seeds" in found.text
    assert "2.10 points above the baseline" in found.text
    assert "1.90 points above its matched random control" in found.text


def test_a_gain_on_the_split_of_the_choice_is_not_claimed() -> None:
    found = verdict(comparison(GAIN, BASELINE, by_seed(0.9, 0.9, 0.9), Measure("val/accuracy")))
    assert found.kind == "not_tested"
    assert "on validation" in found.text
    assert "nothing is claimed before the test split is read" in found.text


WORSE = by_seed(0.880, 0.879, 0.881)
CASES: list[tuple[Kind, Comparison]] = [
    ("no_baseline", comparison(GAIN)),
    ("no_baseline", comparison({})),
    ("no_baseline", comparison(GAIN, {7: 0.9})),
    ("one_seed", comparison({0: 0.95}, BASELINE)),
    ("identical", comparison(dict(BASELINE), BASELINE)),
    ("identical", comparison({0: 0.9}, {0: 0.9})),
    ("no_spread", comparison(by_seed(0.92, 0.92), by_seed(0.90, 0.90))),
    ("within_spread", comparison(SMALL_GAIN, BASELINE)),
    ("worse", comparison(WORSE, BASELINE)),
    ("no_control", comparison(GAIN, BASELINE)),
    ("no_control", comparison(GAIN, BASELINE, {0: 0.9})),
    ("control_not_told_apart", comparison(GAIN, BASELINE, by_seed(0.925, 0.90, 0.91))),
    ("control_not_told_apart", comparison(GAIN, BASELINE, by_seed(0.912, 0.911, 0.910))),
    ("partial", replace(comparison(GAIN, BASELINE), epochs=2)),
    ("worse", comparison(by_seed(0.5, 0.51, 0.50), by_seed(0.3, 0.31, 0.32), measure=LOSS)),
    (
        "above_both",
        comparison(
            by_seed(0.3, 0.31, 0.32), by_seed(0.5, 0.52, 0.53), by_seed(0.5, 0.52, 0.51), LOSS
        ),
    ),
]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_every_kind_has_its_sentence(kind: Kind, case: Comparison) -> None:
    found = verdict(case)
    assert found.kind == kind
    assert found.claims == (kind == "above_both")
    assert "audio" in found.text
    assert "12 arms" in found.text
    assert "None" not in found.text
    assert "nan" not in found.text


def test_a_study_without_a_pathway_says_so() -> None:
    assert verdict(None).kind == "nothing_to_compare"


@given(VALUES, VALUES, VALUES, st.sampled_from([ACCURACY, LOSS, Measure("val/accuracy")]))
def test_no_figures_claim_without_both_comparisons(
    values: dict[int, float],
    baseline: dict[int, float],
    control: dict[int, float],
    measure: Measure,
) -> None:
    case = comparison(values, baseline, control, measure)
    found = verdict(case)
    assert found.text.endswith("12 arms.")
    if found.claims:
        assert measure.split == "test"
        for pairs in (case.to_baseline, case.to_control):
            assert pairs is not None
            assert pairs.n >= 2
            assert pairs.excludes_zero
            assert measure.better(pairs.mean)


def test_figures_are_written_in_one_way() -> None:
    assert ACCURACY.level(0.925) == "92.50 %"
    assert ACCURACY.level(None) == ACCURACY.level(math.nan) == "–"
    assert ACCURACY.difference(-0.000001) == "+0.00"
    assert ACCURACY.level_with_spread(0.925, 0.003, 3) == "92.50 ± 0.30 (3)"
    assert LOSS.level_with_spread(0.3123, None, 1) == "0.3123 (1)"
    assert ACCURACY.title == "test accuracy, %"
    assert Measure("val/accuracy").on_test() == ACCURACY
    assert [duration(s) for s in (None, 0.42, 42.2, 200, 7500)] == [
        "–",
        "0.4 s",
        "42 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert (count(1, "seed"), count(3, "seed")) == ("1 seed", "3 seeds")

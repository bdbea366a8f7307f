"""The pathway beside its rivals: how well each does, and what it costs to have and to use. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from orchestrator.evidence.findings import Arm, Findings
from orchestrator.evidence.statistics import PairedDifference, paired_difference, spread
from orchestrator.evidence.wording import Measure, count

Side = Literal["baseline", "pathway", "rival"]


@dataclass(frozen=True)
class RivalLine:
    """One arm of the table.

    Attributes:
        values: the measure by seed.
        to_baseline, to_pathway: minus the baseline, and minus the best arm with a pathway, over
            the seeds that both have; None in their own lines.
        trained, in_use: parameters beside the plain target's own, while training and afterwards.
        cost: seconds of a batch in use over the plain model's, the median over seeds; with the
            least and the most of them.
    """

    side: Side
    label: str
    values: Mapping[int, float]
    to_baseline: PairedDifference | None
    to_pathway: PairedDifference | None
    trained: int | None
    in_use: int | None
    cost: tuple[float, float, float] | None


def rival_measure(found: Findings) -> Measure:
    """What they are compared on: the test split where it was read for any of them."""
    rivals = [arm for arm in found.arms if arm.row.kind == "rival"]
    return found.measure.on_test() if any(arm.tested for arm in rivals) else found.measure


def rival_lines(found: Findings) -> list[RivalLine]:
    """Baseline, best pathway and all rivals that have a figure; empty without any rival.

    A figure of an arm that was not trained to the end is none: it has no equal beside it.
    """
    rivals = [arm for arm in found.arms if arm.row.kind == "rival"]
    on_test = rival_measure(found).split == "test"

    def values(arm: Arm | None) -> Mapping[int, float]:
        if arm is None or (arm.row.partial and not on_test):
            return {}
        return arm.tested if on_test else arm.row.metrics

    def line(side: Side, arm: Arm) -> RivalLine:
        own, baseline, best = values(arm), values(found.baseline), values(found.best)
        return RivalLine(
            side=side,
            label=arm.label,
            values=own,
            to_baseline=None if side == "baseline" else paired_difference(own, baseline),
            to_pathway=paired_difference(own, best) if side == "rival" else None,
            trained=_count(arm, "cost/trained_parameters"),
            in_use=_count(arm, "cost/inference_parameters"),
            cost=_cost(arm),
        )

    lines = [line("rival", arm) for arm in rivals if values(arm)]
    pinned: list[tuple[Side, Arm | None]] = [("baseline", found.baseline), ("pathway", found.best)]
    return [line(side, arm) for side, arm in pinned if arm is not None and lines] + lines


def rivals_as_json(found: Findings) -> list[dict[str, Any]]:
    """The lines as plain values."""
    measure = rival_measure(found).name
    return [
        {
            **asdict(line),
            "metric": measure,
            "values": {str(seed): value for seed, value in sorted(line.values.items())},
        }
        for line in rival_lines(found)
    ]


def rivals_table(found: Findings) -> dict[str, Any] | None:
    """The lines in words, for the page; None without any rival."""
    lines, measure = rival_lines(found), rival_measure(found)
    if not lines:
        return None
    return {
        "title": measure.title,
        "rows": [_cells(line, measure) for line in lines],
        "notes": list(_notes(lines, measure)),
    }


_NAMES: dict[Side, str] = {"baseline": "Baseline", "pathway": "Best pathway", "rival": "Rival"}


def _cells(line: RivalLine, measure: Measure) -> dict[str, str]:
    level = spread(line.values.values())
    cost = "–"
    if line.cost is not None:
        middle, least, most = line.cost
        cost = f"{middle:.2f}"
        span = f"{least:.2f} to {most:.2f}" if least != most else ""
    return {
        "name": _NAMES[line.side],
        "label": line.label,
        "level": measure.level_with_spread(level.mean, level.std, level.n),
        "to_baseline": _mean(line.to_baseline, measure),
        "baseline_interval": _interval(line.to_baseline, measure),
        "to_pathway": _mean(line.to_pathway, measure),
        "pathway_interval": _interval(line.to_pathway, measure),
        "trained": "–" if line.trained is None else f"{line.trained:,}",
        "in_use": "–" if line.in_use is None else f"{line.in_use:,}",
        "cost": cost,
        "cost_span": span if line.cost is not None else "",
        "style": {"baseline": "pinned", "pathway": "best", "rival": ""}[line.side],
    }


def _mean(found: PairedDifference | None, measure: Measure) -> str:
    return "" if found is None else measure.difference(found.mean)


def _interval(found: PairedDifference | None, measure: Measure) -> str:
    if found is None or found.low is None:
        return ""
    return f"{measure.difference(found.low)} to {measure.difference(found.high)}"


def _notes(lines: list[RivalLine], measure: Measure) -> Iterator[str]:
    compared = [line for line in lines if line.side == "rival" and line.to_pathway is not None]
    if compared:
        yield _standing(compared, measure)
    yield (
        "Rivals train with the arm's recipe, which was searched for the pathway and not for them. "
        "Differences are taken seed by seed, below them their 95 % intervals, each by itself: of "
        "many, one may leave zero out by chance. Better is "
        f"{'higher' if measure.mode == 'max' else 'lower'}."
    )
    if any(line.cost is not None for line in lines):
        yield (
            "In use: seconds of a batch over those of a freshly built plain model, which took turns"
            " with it on the machine that read the test split (median over rounds, then over"
            " seeds; below it the least and the most of them). The baseline is such a plain model:"
            " how far it is from 1.00 is the noise. Pathways are fused and LoRA is merged first;"
            " CALM and GATS run their auxiliaries in use as well."
        )


def _standing(compared: list[RivalLine], measure: Measure) -> str:
    """Which rivals the pathway is better than, worse than, or not told apart from."""
    places: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for line in compared:
        found = line.to_pathway
        assert found is not None
        if found.low is None or not found.excludes_zero:
            place = "not told apart from"
        else:
            place = "worse than" if measure.better(found.mean) else "better than"
        places[place].append(line.label)
    said = [
        f"{place} {count(len(labels), 'rival')} ({'; '.join(labels)})"
        for place, labels in places.items()
        if labels
    ]
    chosen = ""
    if measure.split != "test":
        chosen = (
            ": but that is the split it was chosen on, which flatters it; nothing is claimed "
            "before the test split is read"
        )
    return f"On {measure.split} the best pathway is {', and '.join(said)}{chosen}."


def _figures(arm: Arm, name: str) -> list[float]:
    return [trial.tested[name] for trial in arm.trials if name in trial.tested]


def _count(arm: Arm, name: str) -> int | None:
    found = _figures(arm, name)
    return round(median(found)) if found else None


def _cost(arm: Arm) -> tuple[float, float, float] | None:
    found = _figures(arm, "cost/inference_ratio")
    return (median(found), min(found), max(found)) if found else None

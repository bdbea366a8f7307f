"""The leaderboard: for people as a rich table, for programs as rows. The baseline is pinned.

No row stands alone: beside each level is the baseline's over the same epochs, and the difference
is taken over matched seeds only.
"""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from orchestrator.evidence.findings import Arm, Findings, baseline_level
from orchestrator.evidence.wording import Measure

WIDE = 120
"""Columns of a terminal from which on the leaderboard has all of its columns."""


def rows(found: Findings) -> list[dict[str, Any]]:
    """The leaderboard as plain values (JSON), baseline first, then in order of merit.

    Keys: rank (None for the baseline and controls), arm, label, role, kind, stages, seeds,
    metric, mean, std, n, baseline_mean, baseline_std, baseline_n, difference, difference_low,
    difference_high, difference_n, epochs, full_epochs, partial, scale_mean_abs, scale_max_abs,
    scale_max_at, test, outcome.
    """
    listed, rank = [], 0
    for arm in _ordered(found):
        ranked = arm.row.kind in ("pathway", "plain", "rival") and arm.row.mean is not None
        rank += ranked
        listed.append({"rank": rank if ranked else None, **_row(found, arm)})
    return listed


def leaderboard_table(
    found: Findings, *, title: str | None = None, most: int = 20, width: int = WIDE
) -> Table:
    """The leaderboard for a terminal of ``width`` columns, at most ``most`` arms and the baseline.

    Levels are mean ± standard deviation (seeds); ``@3`` marks the baseline's level after three
    epochs, beside an arm that was stopped there; |λ| is the mean over linears at the end. The
    first column says which rows the verdict compares (base, best), ranks, and marks controls.
    Below `WIDE` columns differences stand without their intervals, and |λ| is left out.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    wide, listed = width >= WIDE, rows(found)
    shown = [(row, _cells(row, found.measure, wide=wide)) for row in listed[: most + 1]]
    for number, name in enumerate(_headings(found.measure, wide=wide)):
        if number < 2:
            table.add_column(name, overflow="fold")
            continue
        longest = max((len(cells[number]) for _, cells in shown), default=0)
        least = max(longest, *(len(word) for word in name.split()))
        table.add_column(name, justify="right", width=least)  # never folded: figures stay whole
    for row, cells in shown:
        table.add_row(*cells, style=_style(row))
    if len(listed) > len(shown):
        table.caption = f"{len(listed) - len(shown)} more; --json lists all"
    return table


def level_text(row: Mapping[str, Any], measure: Measure) -> str:
    """``92.50 ± 0.31 (3)``: mean, standard deviation, seeds."""
    return measure.level_with_spread(row["mean"], row["std"], row["n"])


def baseline_text(row: Mapping[str, Any], measure: Measure) -> str:
    """The baseline beside a row, likewise; empty in its own."""
    if row["role"] == "baseline":
        return ""
    return measure.level_with_spread(row["baseline_mean"], row["baseline_std"], row["baseline_n"])


def difference_text(row: Mapping[str, Any], measure: Measure) -> str:
    """``+1.20 (-0.40 to +2.80)``, or without the interval where there is none."""
    if row["difference"] is None:
        return ""
    text, low = measure.difference(row["difference"]), row["difference_low"]
    if low is None:
        return text
    return f"{text} ({measure.difference(low)} to {measure.difference(row['difference_high'])})"


def _ordered(found: Findings) -> list[Arm]:
    pinned = [found.baseline] if found.baseline else []
    return [*pinned, *found.arms]


def _row(found: Findings, arm: Arm) -> dict[str, Any]:
    row, level, difference, scales = arm.row, arm.level, arm.to_baseline, arm.scales
    beside = baseline_level(found, arm)
    return {
        "arm": row.arm,
        "label": row.label,
        "role": "best" if arm.role == "arm" else arm.role,
        "kind": row.kind,
        "stages": list(row.stages),
        "seeds": list(row.seeds),
        "metric": found.measure.name,
        "mean": level.mean,
        "std": level.std,
        "n": level.n,
        "baseline_mean": beside.mean,
        "baseline_std": beside.std,
        "baseline_n": beside.n,
        "difference": difference.mean if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "difference_n": difference.n if difference else 0,
        "epochs": row.epochs,
        "full_epochs": row.full_epochs,
        "partial": row.partial,
        "scale_mean_abs": scales.mean_abs if scales else None,
        "scale_max_abs": scales.max_abs if scales else None,
        "scale_max_at": scales.where if scales else None,
        "test": {str(seed): value for seed, value in sorted(arm.tested.items())},
        "outcome": arm.outcome,
    }


def _headings(measure: Measure, *, wide: bool) -> list[str]:
    return [
        "",
        "arm",
        measure.title,
        "baseline",
        "difference",
        *(("|λ|",) if wide else ()),
        "epochs",
    ]


def _cells(row: Mapping[str, Any], measure: Measure, *, wide: bool) -> list[str | Text]:
    baseline = baseline_text(row, measure) if row["mean"] is not None else ""
    at = f" @{row['epochs']}" if baseline and row["partial"] else ""
    scale = "" if row["scale_mean_abs"] is None else f"{row['scale_mean_abs']:.2g}"
    difference = difference_text(row if wide else {**row, "difference_low": None}, measure)
    epochs = f"{row['epochs']}/{row['full_epochs']}" if row["partial"] else str(row["epochs"])
    return [
        _place(row),
        Text(row["label"]),  # a Text, so that brackets in labels are no markup
        level_text(row, measure),
        baseline + at,
        difference,
        *((scale,) if wide else ()),
        epochs + _ending(row),
    ]


def _ending(row: Mapping[str, Any]) -> str:
    """What became of its trials, where the number of epochs does not say it."""
    outcome = row["outcome"].partition(":")[0].lstrip("0123456789 ")
    said = "stopped" if row["partial"] else "finished"
    return "" if outcome == said else f" {row['outcome'].partition(':')[0]}"


def _place(row: Mapping[str, Any]) -> str:
    """The rank; a word for the arms that matter to the verdict, and for controls."""
    if row["role"] in ("baseline", "best"):
        return "base" if row["role"] == "baseline" else "best"
    if row["kind"] == "control":
        return "ctrl"
    return "" if row["rank"] is None else str(row["rank"])


def _style(row: Mapping[str, Any]) -> str:
    if row["role"] == "best":
        return "bold"
    return "dim" if row["partial"] or row["kind"] == "control" else ""

"""The leaderboard: for people as a rich table, for programs as rows. The baseline is pinned.

No row stands alone: beside each level is the baseline's over the same epochs, and the difference
is taken over matched seeds only.
"""

from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.evidence.findings import Arm, Findings
from orchestrator.evidence.wording import Measure


def rows(found: Findings) -> list[dict[str, Any]]:
    """The leaderboard as plain values (JSON), baseline first, then in order of merit.

    Keys: rank (None for the baseline and controls), arm, label, role, control, stages, seeds,
    metric, mean, std, n, baseline_mean, baseline_std, baseline_n, difference, difference_low,
    difference_high, difference_n, epochs, full_epochs, partial, scale_mean_abs, scale_max_abs,
    scale_max_at, test, outcome.
    """
    listed, rank = [], 0
    for arm in _ordered(found):
        ranked = arm.role != "baseline" and not arm.borrows_nothing and bool(arm.values)
        rank += ranked
        listed.append({"rank": rank if ranked else None, **_row(found, arm)})
    return listed


def leaderboard_table(found: Findings, *, title: str | None = None, most: int = 20) -> Table:
    """The leaderboard for a terminal, at most ``most`` arms besides the baseline."""
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    table.add_column("#", justify="right")
    table.add_column("arm", overflow="fold", min_width=20)
    for name in (found.measure.title, "baseline", "difference", "epochs", "|λ|"):
        table.add_column(name, justify="right")
    table.add_column("outcome", overflow="fold")
    listed = rows(found)
    for row in listed[: most + 1]:
        table.add_row(*_cells(row, found.measure), style=_style(row))
    if len(listed) > most + 1:
        table.caption = f"{len(listed) - most - 1} more; --json lists all"
    return table


def difference_text(row: dict[str, Any], measure: Measure) -> str:
    """``+1.20 (-0.40 to +2.80)``, or without the interval where there is none."""
    if row["difference"] is None:
        return ""
    text = measure.difference(row["difference"])
    if row["difference_low"] is None:
        return text
    low, high = (
        measure.difference(row["difference_low"]),
        measure.difference(row["difference_high"]),
    )
    return f"{text} ({low} to {high})"


def scales_text(row: dict[str, Any]) -> str:
    """``0.013, most 0.050 at 3.fc2``; empty without a pathway."""
    if row["scale_mean_abs"] is None:
        return ""
    return f"{row['scale_mean_abs']:.3g}, most {row['scale_max_abs']:.3g} at {row['scale_max_at']}"


def level_text(row: dict[str, Any], measure: Measure) -> str:
    """``92.50 ± 0.31 % (n=3)``."""
    return measure.level_with_spread(row["mean"], row["std"], row["n"])


def baseline_text(row: dict[str, Any], measure: Measure) -> str:
    """The baseline beside a row, with the epoch where it is not the last."""
    if row["role"] == "baseline":
        return ""
    shown = measure.level_with_spread(row["baseline_mean"], row["baseline_std"], row["baseline_n"])
    return f"{shown} at epoch {row['epochs']}" if row["partial"] and row["n"] else shown


def epochs_text(row: dict[str, Any]) -> str:
    """``6`` or ``3 of 6``."""
    return f"{row['epochs']} of {row['full_epochs']}" if row["partial"] else str(row["epochs"])


def _ordered(found: Findings) -> list[Arm]:
    pinned = [found.baseline] if found.baseline else []
    return [*pinned, *found.arms]


def _row(found: Findings, arm: Arm) -> dict[str, Any]:
    level, difference, scales = arm.level, found.difference(arm), arm.scales
    beside = found.beside(arm)
    return {
        "arm": arm.arm,
        "label": arm.label,
        "role": "best" if arm.role == "arm" else arm.role,
        "control": arm.borrows_nothing,
        "stages": list(arm.stages),
        "seeds": sorted(arm.values),
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
        "epochs": arm.epochs,
        "full_epochs": arm.full_epochs,
        "partial": arm.partial,
        "scale_mean_abs": scales.mean_abs if scales else None,
        "scale_max_abs": scales.max_abs if scales else None,
        "scale_max_at": scales.where if scales else None,
        "test": {str(seed): value for seed, value in sorted(arm.tested.items())},
        "outcome": arm.outcome,
    }


def _cells(row: dict[str, Any], measure: Measure) -> list[str | Text]:
    label = row["label"]
    if row["role"] == "best":
        label += "  [best]"
    elif row["control"]:
        label += "  [control]"
    return [
        "" if row["rank"] is None else str(row["rank"]),
        Text(label),  # a Text, so that brackets in labels are no markup
        level_text(row, measure),
        baseline_text(row, measure),
        difference_text(row, measure),
        epochs_text(row),
        scales_text(row),
        Text(row["outcome"]),
    ]


def _style(row: dict[str, Any]) -> str:
    if row["role"] == "best":
        return "bold"
    return "dim" if row["partial"] or row["control"] else ""

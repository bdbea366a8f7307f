"""The four pictures of a report. Each function returns the bytes of one SVG or PNG."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from orchestrator.evidence.series import (
    LINEARS,
    Curve,
    Role,
    ScaleTrack,
    final_scales,
    mean_curve,
)
from orchestrator.evidence.style import (
    AUXILIARY_COLOURS,
    BLUE,
    GREY,
    INK,
    ORANGE,
    Format,
    figure,
    quiet,
    text_style,
    to_bytes,
)
from orchestrator.evidence.wording import Measure, count

# More rows than this leave no room for figures in the cells of the heat map.
_MOST_ANNOTATED_BLOCKS = 16


def learning_curves(curves: Sequence[Curve], measure: Measure, *, form: Format = "svg") -> bytes:
    """Every trial's curve, and beside it the same minus the baseline at the same seed.

    On the left the baseline is a band of one standard deviation over its seeds. On the right it
    is the zero line, and what seeds have in common is gone, so that small differences show.
    """
    with text_style():
        made = figure(9.0, 4.4)
        base = _of_role(curves, "baseline")
        panels = made.subplots(1, 2) if base else [made.add_subplot()]
        _draw_all(panels[0], curves, measure)
        panels[0].set_ylabel(measure.title)
        if base:
            panels[1].axhline(0.0, color=INK, linewidth=2.2)
            _draw_all(panels[1], _minus(curves, base), measure)
            unit = ", points" if measure.is_fraction else ""
            panels[1].set_ylabel(f"minus baseline, seed by seed{unit}")
        for axes in panels:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            quiet(axes)
        if curves:
            handles, labels = panels[0].get_legend_handles_labels()
            made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return to_bytes(made, form)


def _of_role(curves: Sequence[Curve], role: Role) -> list[Curve]:
    return [curve for curve in curves if curve.role == role]


def _minus(curves: Sequence[Curve], base: Sequence[Curve]) -> list[Curve]:
    """The other curves less the baseline's at the same seed, where it has that seed and epoch."""
    level = {curve.seed: dict(zip(curve.epochs, curve.values, strict=True)) for curve in base}
    lowered = []
    for curve in curves:
        own, theirs = zip(curve.epochs, curve.values, strict=True), level.get(curve.seed, {})
        left = [(epoch, value - theirs[epoch]) for epoch, value in own if epoch in theirs]
        if left and curve.role != "baseline":
            at, values = tuple(epoch for epoch, _ in left), tuple(value for _, value in left)
            lowered.append(replace(curve, epochs=at, values=values))
    return lowered


def _draw_all(axes: Any, curves: Sequence[Curve], measure: Measure) -> None:
    """The order is that of the legend; what matters most lies on top all the same."""
    arm = _of_role(curves, "arm")
    _band(axes, _of_role(curves, "baseline"), measure, ("baseline", INK, "-"))
    _band(axes, arm, measure, (arm[0].label if arm else "", BLUE, "-"))
    _band(axes, _of_role(curves, "control"), measure, ("its control", ORANGE, "--"))
    _other_curves(axes, curves, measure)


def _other_curves(axes: Any, curves: Sequence[Curve], measure: Measure) -> None:
    """Thin lines for what else was tried, coloured by auxiliary."""
    others = _of_role(curves, "other")
    for number, name in enumerate(sorted({curve.auxiliary for curve in others})):
        mine = [curve for curve in others if curve.auxiliary == name]
        colour = AUXILIARY_COLOURS[number % len(AUXILIARY_COLOURS)]
        for place, curve in enumerate(mine):
            axes.plot(
                curve.epochs,
                [measure.shown(value) for value in curve.values],
                color=colour,
                linewidth=1.1,
                zorder=1.5,
                alpha=0.8,
                marker="o" if len(curve.epochs) == 1 else None,
                markersize=3,
                label=f"{name}: {count(len(mine), 'other trial')}" if place == 0 else None,
            )


def _band(axes: Any, curves: Sequence[Curve], measure: Measure, look: tuple[str, str, str]) -> None:
    """Mean over seeds as a line; ± one standard deviation as a band where there are several."""
    if not curves:
        return
    label, colour, dashes = look
    epochs, table = mean_curve(curves)
    shown = np.vectorize(measure.shown, otypes=[float])(table)
    mean, spread = np.nanmean(shown, axis=0), _spread(shown)
    words = f"mean ± std, {count(len(curves), 'seed')}" if spread.any() else "1 seed"
    axes.plot(
        epochs,
        mean,
        color=colour,
        linestyle=dashes,
        linewidth=2.2,
        zorder=3,
        marker="o",
        markersize=3.5,
        label=f"{textwrap.fill(label, 44)}\n({words})",
    )
    if spread.any():
        axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)


def _spread(table: Any) -> Any:
    """Standard deviation of each column over its finite values; 0 below two of them."""
    enough = np.isfinite(table).sum(axis=0) > 1
    columns = zip(table.T, enough, strict=True)
    return np.array([np.nanstd(column, ddof=1) if some else 0.0 for column, some in columns])


def scale_trajectories(tracks: Sequence[ScaleTrack], *, form: Format = "svg") -> bytes:
    """λ over the epochs: one row per auxiliary, one panel per kind of linear, coloured by block."""
    with text_style():
        names = sorted({track.auxiliary for track in tracks})
        made = figure(8.4, 0.6 + 2.2 * max(1, len(names)))
        depth = 1 + max((track.block for track in tracks), default=0)
        colours = _block_colours(depth)
        grid = made.subplots(max(1, len(names)), len(LINEARS), sharex=True, sharey=True)
        rows = np.atleast_2d(grid)
        for row, name in zip(rows, names, strict=False):
            for axes, linear in zip(row, LINEARS, strict=True):
                _scale_panel(axes, [t for t in tracks if t.auxiliary == name], linear, colours)
            row[0].set_ylabel(f"λ of {name}" if name else "λ")
        norm = BoundaryNorm(np.arange(depth + 1) - 0.5, depth)
        bar = made.colorbar(ScalarMappable(norm, colours), ax=list(rows.flat), pad=0.015)
        bar.set_label("block")
        bar.set_ticks([block for block in range(depth) if depth <= 12 or block % 4 == 0])
        bar.outline.set_visible(False)
        return to_bytes(made, form)


def _block_colours(depth: int) -> Any:
    """Dark for the first block, light for the last; viridis less its end, too pale on white."""
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, depth)))


def _scale_panel(axes: Any, tracks: Sequence[ScaleTrack], linear: str, colours: Any) -> None:
    mine = [track for track in tracks if track.linear == linear]
    for track in mine:
        axes.plot(
            track.epochs,
            track.values,
            color=colours(track.block),
            linewidth=1.6,
            marker="o",
            markersize=2.5,
        )
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_title(linear if mine else f"{linear} (not covered)")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    quiet(axes)


def scale_heat_map(tracks: Sequence[ScaleTrack], *, form: Format = "svg") -> bytes:
    """λ at the end, block by linear, one panel per auxiliary; a cross means "takes no part"."""
    with text_style():
        names = sorted({track.auxiliary for track in tracks}) or [""]
        tables = [final_scales(tracks, name) for name in names]
        depth = max(1, *(len(table) for table in tables))
        made = figure(1.3 + 3.2 * len(names), 1.2 + 0.30 * depth)
        panels = np.atleast_1d(made.subplots(1, len(names)))
        filled = [table for table in tables if np.isfinite(table).any()]
        reach = max((float(np.nanmax(np.abs(table))) for table in filled), default=0.0) or 1e-12
        norm = TwoSlopeNorm(0.0, -reach, reach)
        image = None
        for axes, name, table in zip(panels, names, tables, strict=True):
            image = _heat_panel(axes, table, norm)
            axes.set_title(name or "λ")
        if image is not None:
            bar = made.colorbar(image, ax=list(panels), pad=0.03)
            bar.set_label("λ at the end")
            bar.outline.set_visible(False)
        return to_bytes(made, form)


def _heat_panel(axes: Any, table: Any, norm: Any) -> Any:
    """One auxiliary; returns the image that the colour bar belongs to."""
    shape = (max(1, len(table)), len(LINEARS))
    values = table if len(table) else np.full(shape, np.nan)
    image = axes.imshow(values, cmap="PuOr_r", norm=norm, aspect="auto")
    axes.set_xticks(range(len(LINEARS)), LINEARS)
    axes.set_yticks(range(shape[0]))
    axes.set_ylabel("block")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if shape[0] <= _MOST_ANNOTATED_BLOCKS:
        _annotate(axes, values, norm.vmax)
    return image


def _annotate(axes: Any, values: Any, reach: float) -> None:
    """Write the figure into each cell, with as many decimals as tell the cells apart."""
    decimals = min(6, max(1, 2 - math.floor(math.log10(reach))))
    for (row, column), value in np.ndenumerate(values):
        missing = not np.isfinite(value)
        dark = not missing and abs(value) > 0.6 * reach
        axes.text(
            column,
            row,
            "×" if missing else f"{value:+.{decimals}f}",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if dark else GREY if missing else INK,
        )


def paired_dots(
    columns: Sequence[tuple[str, Mapping[int, float]]], measure: Measure, *, form: Format = "svg"
) -> bytes:
    """One line per seed through its figures: baseline, arm, control. Bars are the means.

    ``columns`` are (name, value by seed) from left to right; the second one is the arm.
    """
    shown = [(name, values) for name, values in columns if values]
    with text_style():
        made = figure(1.2 + 1.9 * max(2, len(shown)), 3.6)
        axes = made.add_subplot()
        seeds = sorted({seed for _, values in shown for seed in values})
        for number, seed in enumerate(seeds):
            points = [(x, v[seed]) for x, (_, v) in enumerate(shown) if seed in v]
            _one_seed(axes, points, measure, (number, f"seed {seed}"))
        for x, (_, values) in enumerate(shown):
            mean = measure.shown(float(np.mean(list(values.values()))))
            axes.hlines(mean, x - 0.22, x + 0.22, color=INK, linewidth=2.4)
            words = f"{mean:.2f}" if measure.is_fraction else f"{mean:.4g}"
            axes.annotate(words, (x + 0.24, mean), va="center", color=INK, fontsize=8.5)
        axes.set_xticks(range(len(shown)), [name for name, _ in shown])
        axes.set_xlim(-0.5, max(1, len(shown)) - 0.25)
        axes.set_ylabel(measure.title)
        quiet(axes)
        if seeds:
            made.legend(loc="outside right upper", frameon=False)
        return to_bytes(made, form)


def _one_seed(
    axes: Any, points: Sequence[tuple[int, float]], measure: Measure, look: tuple[int, str]
) -> None:
    """Line and markers of one seed; the marker tells seeds apart without any colour."""
    number, label = look
    axes.plot(
        [x for x, _ in points],
        [measure.shown(value) for _, value in points],
        color=(BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")[number % 6],
        marker="osD^vP"[number % 6],
        markersize=6,
        linewidth=1.2,
        alpha=0.9,
        label=label,
    )

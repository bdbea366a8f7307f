"""How plots look: colours that people with any colour vision can tell apart, and quiet axes.

matplotlib is used without pyplot: figures are values here, and nothing global is left behind.
"""

import io
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Format = Literal["svg", "png"]

# Okabe and Ito's set, the usual one for readers with any colour vision.
BLUE = "#0072B2"
ORANGE = "#D55E00"
INK = "#222222"
GREY = "#6B7280"
PALE = "#D1D5DB"
AUXILIARY_COLOURS = ("#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#F0E442")

_TEXT = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    # Paths, not fonts: the page looks the same where no such font is installed.
    "svg.fonttype": "path",
    # A fixed salt and no date: the same figures give the same bytes.
    "svg.hashsalt": "m2pt",
}


def text_style() -> Any:
    """A context in which figures are made and saved with our text sizes."""
    return matplotlib.rc_context(_TEXT)


def figure(width: float, height: float) -> Any:
    """An empty figure (inches) that no pyplot state knows of."""
    made = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    return made


def quiet(axes: Any, *, grid: Literal["x", "y"] | None = "y") -> None:
    """No box, a light grid behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALE)
    axes.tick_params(color=PALE, labelcolor=INK)
    if grid:
        axes.grid(axis=grid, color="#E5E7EB", linewidth=0.7)
    axes.set_axisbelow(True)


def to_bytes(made: Any, form: Format) -> bytes:
    """The figure as a file; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    made.savefig(buffer, format=form, dpi=160, metadata=metadata)
    return buffer.getvalue()

"""Every layout that is understood, in the order in which they are tried; and what cannot serve."""

import difflib
import re
from collections.abc import Collection

from m2pt.weights.naming import hf_rows, timm_rows, torch_rows
from m2pt.weights.naming.layout import Layout

AUTO = "auto"
LAYOUTS: dict[str, Layout] = {
    row.name: row for row in (*timm_rows.ROWS, *hf_rows.ROWS, *torch_rows.ROWS)
}

_SWIGLU = (
    "its MLPs are gated (SwiGLU: three matrices, where the target has two), so that fc1 and fc2 do "
    "not exist; take a checkpoint with a plain MLP"
)
_SWIN = (
    "it is a Swin transformer, whose blocks have other widths from stage to stage; take a "
    "checkpoint of a plain transformer"
)
_NOT_DECODER = r"(?!.*decoder)(?:.*\.)?"
REFUSED: tuple[tuple[str, str], ...] = (
    (_NOT_DECODER + r"blocks\.\d+\.mlp\.(?:fc1_[gx]|w12|w[123]|gate_proj)\.weight", _SWIGLU),
    (_NOT_DECODER + r"layers?\.\d+\.mlp\.(?:weights_in|w12|gate_proj)\.weight", _SWIGLU),
    (_NOT_DECODER + r"layers\.\d+\.blocks\.\d+\..+", _SWIN),
    (
        _NOT_DECODER + r"layers\.\d+\.[01]\.fn\.to_qkv\.weight",
        "it is OpenShape's point transformer, whose attention and MLP have widths of their own; "
        "take a checkpoint of a plain transformer",
    ),
)
"""(pattern of a name, why a checkpoint that has it cannot serve): where no layout is named."""


def layout_named(text: str) -> tuple[Layout | None, str | None]:
    """(layout, part) that `layout=` names, as in `imagebind:audio`; (None, None) of auto.

    Raises:
        ValueError: there is no such layout, or it has no parts.
    """
    name, colon, part = text.partition(":")
    if name == AUTO and not colon:
        return None, None
    row = LAYOUTS.get(name)
    if row is None:
        near = difflib.get_close_matches(name, LAYOUTS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"layout: {text!r} is none of {AUTO}, {', '.join(LAYOUTS)}{meant}")
    if colon and not (part and "(?P<part>" in row.prefix):
        raise ValueError(
            f"layout: {text!r} names a part, which only a layout of several trunks or towers has "
            f"({', '.join(key for key, one in LAYOUTS.items() if '(?P<part>' in one.prefix)})"
        )
    return row, part or None


def why_refused(names: Collection[str]) -> str | None:
    """Why a checkpoint with these names cannot serve; None where that is not known."""
    for pattern, reason in REFUSED:
        if any(re.fullmatch(pattern, name) for name in names):
            return reason
    return None

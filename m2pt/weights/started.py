"""What a model started from: each of its tensors, and what of the source was left over. Values."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

How = Literal["loaded", "resampled", "folded", "left"]

_BLOCK = re.compile(r"blocks\.\d+\.")
_KIND = re.compile(r"\.(weight|bias)$")
_PARTS = (
    ("blocks", re.compile(r"blocks\.\d+\.(attn|mlp|ls\d)\b")),
    ("norms", re.compile(r"blocks\.\d+\.norm")),
    ("final norm", re.compile(r"(fc_)?norm\.")),
    ("tokenizer", re.compile(r"patch_embed\.(?!position\.)")),
    ("positions", re.compile(r"pos_embed|patch_embed\.position\.")),
    ("class token", re.compile(r"cls_token")),
    ("head", re.compile(r"head\b")),
)
"""What a name is a part of; the first that matches."""


@dataclass(frozen=True)
class Placed:
    """What became of one tensor of the model.

    loaded: it is the source's. resampled: it is worked out from the source's, which is of another
    size. folded: the source's, with LayerScale multiplied in. left: as it was drawn.
    """

    name: str
    how: How
    told: str = ""
    """From what to what, or why it was left."""


@dataclass(frozen=True)
class Unused:
    """A tensor of the source that the model has no use for."""

    name: str
    why: str


@dataclass(frozen=True)
class Started:
    """Every tensor of the model, in its order, and every one of the source that was not used."""

    placed: tuple[Placed, ...]
    unused: tuple[Unused, ...] = ()

    @property
    def resampled(self) -> frozenset[str]:
        """The tensors that were worked out, which may differ in the last digit elsewhere."""
        return frozenset(one.name for one in self.placed if one.how == "resampled")

    def summary(self) -> str:
        """One line for a person: what was taken, and what was left as it was drawn."""
        taken, left = list[str](), dict[str, list[str]]()
        for part, found in self._parts().items():
            used = [one for one in found if one.how != "left"]
            told = next((one.told for one in used if one.how in ("resampled", "folded")), "")
            if used:
                taken.append(f"{part} ({told})" if told else part)
            elif part == "head":
                left.setdefault("", []).append(part)
            else:
                left.setdefault(found[0].told, []).append(part)
        drawn = [", ".join(parts) + (f" ({why})" if why else "") for why, parts in left.items()]
        return f"taken: {', '.join(taken)}; as drawn: {', '.join(drawn) or 'nothing'}"

    def lines(self) -> list[str]:
        """A line for each thing that happened to some tensors: `resampled  pos_embed: ...`."""
        happened: dict[tuple[str, str], list[str]] = {}
        for one in self.placed:
            happened.setdefault((one.how, one.told), []).append(one.name)
        for rest in self.unused:
            happened.setdefault(("unused", rest.why), []).append(rest.name)
        return [
            f"{how:<9}  {_shortened(names)}" + (f": {told}" if told else "")
            for (how, told), names in happened.items()
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _parts(self) -> dict[str, list[Placed]]:
        found: dict[str, list[Placed]] = {part: [] for part, _ in _PARTS}
        for one in self.placed:
            part = next((part for part, names in _PARTS if names.match(one.name)), one.name)
            found.setdefault(part, []).append(one)
        return {part: placed for part, placed in found.items() if placed}


def _shortened(names: Iterable[str]) -> str:
    """`blocks: attn.qkv, mlp.fc1; fc_norm`: no block, no weight and no bias by itself."""
    return "; ".join(_grouped(dict.fromkeys(_KIND.sub("", name) for name in names)))


def _grouped(names: Iterable[str]) -> Iterator[str]:
    plain = [name for name in names if not _BLOCK.match(name)]
    within = dict.fromkeys(_BLOCK.sub("", name) for name in names if _BLOCK.match(name))
    if within:
        yield f"blocks: {', '.join(within)}"
    if plain:
        yield ", ".join(plain)

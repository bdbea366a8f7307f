"""What a model started from: each of its tensors, and what of the source was left over. Values."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

How = Literal["loaded", "resampled", "folded", "left"]

_BLOCK, _EVERY = re.compile(r"blocks\.\d+\."), "blocks.*."
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
        others = [", ".join(parts) + (f" ({why})" if why else "") for why, parts in left.items()]
        return f"taken: {', '.join(taken)}; not taken: {', '.join(others) or 'nothing'}"

    def lines(self) -> list[str]:
        """A line for each thing that happened to some tensors: `resampled  pos_embed: ...`."""
        placed = _told((one.how, one.told, one.name) for one in self.placed)
        unused = _told(("unused", one.why, one.name) for one in self.unused)
        return [*placed, *unused]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _parts(self) -> dict[str, list[Placed]]:
        found: dict[str, list[Placed]] = {part: [] for part, _ in _PARTS}
        for one in self.placed:
            part = next((part for part, names in _PARTS if names.match(one.name)), one.name)
            found.setdefault(part, []).append(one)
        return {part: placed for part, placed in found.items() if placed}


def _told(happened: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Lines of (what happened, how or why, name)."""
    by_what: dict[tuple[str, str], list[str]] = {}
    for what, why, name in happened:
        by_what.setdefault((what, why), []).append(_BLOCK.sub(_EVERY, name))
    fates: dict[str, set[tuple[str, str, str]]] = {}
    for fate, names in by_what.items():
        for name in names:
            for whole in _wholes(name):
                fates.setdefault(whole, set()).add((*fate, name))
    for (what, why), names in by_what.items():
        short = dict.fromkeys(_shortest(name, fates) for name in names)
        inside = [name.removeprefix(_EVERY) for name in short if name.startswith(_EVERY)]
        beside = [name for name in short if not name.startswith(_EVERY)]
        blocks = [f"blocks ({', '.join(inside)})"] if inside else []
        yield f"{what:<9}  {', '.join([*blocks, *beside])}" + (f": {why}" if why else "")


def _wholes(name: str) -> list[str]:
    """What a tensor is of, the larger first: `patch_embed` and `patch_embed.proj`."""
    parts = name.split(".")
    ends = dict.fromkeys((1, len(parts) - 1)) if len(parts) > 1 else ()
    return [".".join(parts[:end]) for end in ends]


def _shortest(name: str, fates: Mapping[str, set[tuple[str, str, str]]]) -> str:
    """The name of the largest whole of which several tensors are told of, and all the same."""
    for whole in _wholes(name):
        if len(fates[whole]) > 1 and len({fate[:2] for fate in fates[whole]}) == 1:
            return whole
    return name

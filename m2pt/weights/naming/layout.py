"""How one family of checkpoints names its tensors, as a table. Strings only; imports no torch.

A name is `prefix` + `block` + a key of `inside`, for what every block has, or `prefix` + a key of
`around`. Keys are looked up whole, never searched: `output.dense` is not mistaken for the end of
`attention.output.dense`. Their values are timm's names; where a source keeps query, key and value
apart they are `attn.q`, `attn.k` and `attn.v`, to be joined.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

NormStyle = Literal["pre", "post"]

_KINDS = (".weight", ".bias")
_ATTENTION = ({"attn.qkv"}, {"attn.q", "attn.k", "attn.v"})
_OTHERS = {"attn.proj", "mlp.fc1", "mlp.fc2"}


class Place(NamedTuple):
    """What a name of a checkpoint stands for."""

    prefix: str | None
    """What stood before it; None of a name that is taken whatever stands before the others."""
    part: str | None
    """The trunk or tower that it is of, where a layout has several."""
    name: str
    """timm's name, with q, k and v apart where the source has them so."""


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints."""

    name: str
    """What `layout=` calls it."""
    what: str
    """Whose checkpoints these are, for people."""
    block: str
    """What stands before every name in block `{i}`."""
    inside: Mapping[str, str]
    """Modules (then `.weight` and `.bias` follow) or tensors of a block -> timm's. A key that ends
    in a dot stands for all that begins with it, and so does its value."""
    around: Mapping[str, str] = field(default_factory=dict)
    """The same outside of blocks."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """The same of names that stand without the prefix."""
    prefix: str = ""
    """A pattern of what may stand before all; its group `part` tells trunks apart."""
    signs: tuple[str, ...] = ()
    """Patterns, each of which some name must match as a whole; they tell look-alikes apart."""
    part: str | None = None
    """The part that is meant where none is named."""
    norm: NormStyle | None = "pre"
    """Where blocks normalise: before attention and MLP, or after; None: it differs."""
    activation: str | None = "gelu"
    """Of the MLP; None: it differs."""

    def place(self, name: str) -> Place | None:
        """What `name` stands for; None where this layout knows nothing of it."""
        if match := self._in_block.fullmatch(name):
            found = _looked_up(self.inside, match["rest"])
            if found is not None:
                return self._place(match, f"blocks.{int(match['i'])}.{found}")
        if (match := self._around.fullmatch(name)) and (
            found := _looked_up(self.around, match["rest"])
        ):
            return self._place(match, found)
        found = _looked_up(self.beside, name)
        return None if found is None else Place(None, None, found)

    def suits(self, names: Iterable[str]) -> bool:
        """Whether there are blocks of this layout among `names`: each kind of linear, and signs."""
        names = list(names)
        places = (place for name in names if (place := self.place(name)) is not None)
        found = {_linear(place.name) for place in places}
        whole = found >= _OTHERS and any(found >= attention for attention in _ATTENTION)
        return whole and all(any(re.fullmatch(sign, name) for name in names) for sign in self.signs)

    def _place(self, match: re.Match[str], name: str) -> Place:
        return Place(match["prefix"], match.groupdict().get("part"), name)

    @cached_property
    def _in_block(self) -> re.Pattern[str]:
        before, _, after = self.block.partition("{i}")
        number = rf"{re.escape(before)}(?P<i>\d{{1,4}}){re.escape(after)}"
        return re.compile(rf"(?P<prefix>{self.prefix}){number}(?P<rest>.+)")

    @cached_property
    def _around(self) -> re.Pattern[str]:
        known = "|".join(re.escape(key) for key in self.around) or "(?!)"
        return re.compile(rf"(?P<prefix>{self.prefix})(?P<rest>(?:{known}).*)")


def _looked_up(table: Mapping[str, str], name: str) -> str | None:
    if name in table:
        return table[name]
    for kind in _KINDS:
        module = name.removesuffix(kind)
        if module != name and module in table:
            return table[module] + kind
    within = (key for key in table if key.endswith(".") and name.startswith(key))
    return next((table[key] + name.removeprefix(key) for key in within), None)


def _linear(name: str) -> str:
    """`attn.proj` of `blocks.3.attn.proj.weight`; nothing of a bias or of what is in no block."""
    found = re.fullmatch(r"blocks\.\d+\.(.+)\.weight", name)
    return found[1] if found else ""

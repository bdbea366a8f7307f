"""Where weights come from and what that means: values and rules. Imports no torch.

What a file says of itself (its digest, layout and sizes) is measured; what it was trained on is
known of public checkpoints (`m2pt.weights.checkpoints`), or stated by who uses it. None is unknown.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from m2pt.weights.naming.layout import NormStyle

Modality = Literal[
    "image", "audio", "point", "video", "text", "depth", "thermal", "imu", "multimodal"
]
MODALITIES: tuple[str, ...] = get_args(Modality)
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial|research[ -]only", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """What weights were made from: what cannot be seen in them."""

    modality: str | None = None
    """Of the data that they were trained on; one of `MODALITIES`."""
    supervised: bool | None = None
    """With labels or paired captions of people's making, or without (self-supervised)."""
    data: str | None = None
    """The data set."""
    lineage: str | None = None
    """The weights that they started from, in words; `scratch` where from none."""
    involves: tuple[str, ...] = ()
    """Other modalities that had a part in them: of what they started from, or were aligned with."""
    licence: str | None = None
    """Of the weights, as SPDX writes it where it can."""

    def stated(self, **said: Any) -> "Origin":
        """With what is said in the place of what was known; None says nothing."""
        return replace(self, **{name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True)
class Provenance:
    """Where one set of weights comes from, and of what kind it is."""

    uri: str
    sha256: str
    """Of the file; of a model of timm, of its state as safetensors."""
    layout: str
    dim: int
    depth: int
    hidden: int
    """Channels of the MLP."""
    origin: Origin = Origin()
    heads: int | None = None
    """Cannot be told from shapes: it is known from a config.json, or from a known model."""
    norm: NormStyle | None = None
    """Whether blocks normalise before attention and MLP, or after."""
    activation: str | None = None
    layer_scale: bool = False
    """Whether blocks scale what they add; folded into the matrices that are lent."""
    revision: str | None = None
    """The commit on the hub."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, flat; what is not known is left out."""
        flat = {name: value for name, value in asdict(self).items() if name != "origin"}
        found = {**flat, **asdict(self.origin)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value not in (None, (), "")
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> "Provenance":
        """What `as_dict` gave, of this version or another: what is not known here is left aside.

        Raises:
            ValueError: a value that it cannot be without is missing.
        """
        of_origin = {name: said[name] for name in _names(Origin) if name in said}
        if "involves" in of_origin:
            of_origin["involves"] = tuple(of_origin["involves"])
        own = {name: said[name] for name in _names(cls) if name in said and name != "origin"}
        try:
            return cls(**own, origin=Origin(**of_origin))
        except TypeError as error:
            raise ValueError(f"no provenance of weights: {error}") from error

    def with_origin(self, origin: Origin) -> "Provenance":
        """The same weights, made from something else."""
        return replace(self, origin=origin)

    @property
    def shape(self) -> str:
        """Depth, width and heads in words."""
        heads = "" if self.heads is None else f", {self.heads} heads"
        return f"{self.depth} blocks of width {self.dim}{heads}"

    @property
    def how(self) -> str:
        """`self-supervised`, `supervised` or nothing."""
        return {None: "", True: "supervised", False: "self-supervised"}[self.origin.supervised]


def warnings(found: Provenance, target: str | None, heads: int | None = None) -> tuple[str, ...]:
    """What speaks against calling these weights irrelevant to the target, or restricts their use.

    Args:
        found: of the weights.
        target: the modality of the target's data; None where the target itself starts from them,
            and nothing is lent.
        heads: the target's.
    """
    lent = () if target is None else _relevant(found.origin, target)
    return (*lent, *_restricted(found.origin), *_built(found, heads))


def _relevant(origin: Origin, target: str) -> Iterator[str]:
    because = f" ({origin.lineage})" if origin.lineage and origin.lineage != "scratch" else ""
    if origin.modality is None:
        yield (
            "its modality is not known, and so not whether the data is irrelevant: state its "
            "`provenance`"
        )
    elif origin.modality == target:
        yield (
            f"its modality is the target's own ({target}): what it lends is not irrelevant data, "
            "and a gain is one of ordinary transfer"
        )
    if target in origin.involves and origin.modality != target:
        yield (
            f"the target's own modality ({target}) had a part in it{because}: what it lends is not "
            "irrelevant data"
        )
    if others := [name for name in origin.involves if name != target]:
        yield (
            f"{' and '.join(others)} data had a part in it{because}: a gain is not that of "
            f"{origin.modality or 'its own'} data alone"
        )


def _restricted(origin: Origin) -> Iterator[str]:
    if origin.licence is not None and _NON_COMMERCIAL.search(origin.licence):
        yield (
            f"its licence ({origin.licence}) forbids commercial use, also of a model that it is "
            "fused into"
        )


def _built(found: Provenance, heads: int | None) -> Iterator[str]:
    if None not in (heads, found.heads) and heads != found.heads:
        yield (
            f"its attention has {found.heads} heads and the target's {heads}: its queries and keys "
            "meet in other groups"
        )
    if found.norm == "post":
        yield (
            "its blocks normalise after attention and MLP (post-LN), the target's before: its "
            "matrices met inputs of another scale"
        )


def _names(kind: type[Origin] | type[Provenance]) -> tuple[str, ...]:
    return tuple(part.name for part in fields(kind))

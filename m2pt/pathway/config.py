"""What a pathway is, as frozen values: standard library only, so that reading them costs no torch.

Defaults are the paper's setting: every linear of every block, one learned λ per linear that
starts at 0, an auxiliary that is trained along.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

LinearName = Literal["qkv", "proj", "fc1", "fc2"]
EnvelopeKind = Literal["constant", "linear", "cosine", "anneal", "hold"]
Granularity = Literal["linear", "block", "global"]

LINEARS: tuple[LinearName, ...] = get_args(LinearName)


def block_rule(text: str) -> tuple[str, int]:
    """Read "all", "first:K", "last:K" or "every:K" as (name, K); K is 0 for "all".

    Raises:
        ValueError: the text is none of these, or K is not a whole number above 0.
    """
    if text == "all":
        return "all", 0
    name, _, count = text.partition(":")
    if name not in ("first", "last", "every") or not count.isdecimal() or int(count) == 0:
        raise ValueError(
            f"blocks: 'all', 'first:K', 'last:K' or 'every:K' with a whole K above 0, or block "
            f"indices such as [0, 3], not {text!r}"
        )
    return name, int(count)


def _ordered_blocks(blocks: tuple[int, ...]) -> tuple[int, ...]:
    whole = all(isinstance(block, int) and not isinstance(block, bool) for block in blocks)
    if not blocks or not whole or len(set(blocks)) < len(blocks) or min(blocks) < 0:
        raise ValueError(
            f"blocks: at least one block index, whole, 0 or above, none twice, not {blocks!r}; "
            "for no pathway at all choose no auxiliary"
        )
    return tuple(sorted(blocks))


def _ordered_linears(linears: tuple[LinearName, ...]) -> tuple[LinearName, ...]:
    if not linears or len(set(linears)) < len(linears) or not set(linears) <= set(LINEARS):
        raise ValueError(
            f"linears: at least one of {', '.join(LINEARS)}, none twice, not {linears!r}; "
            "for no pathway at all choose no auxiliary"
        )
    return tuple(name for name in LINEARS if name in linears)


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}: one of {', '.join(choices)}, not {value!r}")


@dataclass(frozen=True)
class Coverage:
    """Which blocks and which of their linears take part.

    `blocks` is "all", "first:K", "last:K", "every:K" (blocks 0, K, 2K, ...) or a tuple of block
    indices counted from 0. Both fields are kept in the model's order, so that two spellings of one
    coverage are equal. Whether the blocks exist is checked once the depth is known (`select`).

    Raises:
        ValueError: a field is empty, repeats itself or is not one of the forms above.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    blocks: str | tuple[int, ...] = "all"
    linears: tuple[LinearName, ...] = LINEARS

    def __post_init__(self) -> None:
        if isinstance(self.blocks, str):
            block_rule(self.blocks)
        else:
            object.__setattr__(self, "blocks", _ordered_blocks(tuple(self.blocks)))
        object.__setattr__(self, "linears", _ordered_linears(tuple(self.linears)))


@dataclass(frozen=True)
class Envelope:
    """The factor that a schedule puts on λ, as training progresses from t = 0 to t = 1.

    constant: 1. linear, cosine: from 0 to 1 over [0, until], then 1. anneal: from 1 to 0 (half a
    cosine) over [0, until], then 0. hold: 1, but the value is no longer learned from t = until on.

    Raises:
        ValueError: the kind is unknown, or `until` is outside (0, 1].
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: EnvelopeKind = "constant"
    until: float = 1.0

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, get_args(EnvelopeKind))
        if not 0.0 < self.until <= 1.0:
            raise ValueError(
                f"until: a fraction of training in (0, 1], not {self.until!r}; "
                "1.0 is the end of training"
            )


@dataclass(frozen=True)
class Scale:
    """λ = envelope(t) · value, for each auxiliary and each group of linears.

    A group is one linear, one block, or the whole model (`granularity`). With `split_qkv`, λ of
    a qkv linear is three numbers, one each for the rows of q, k and v; with granularity "block" or
    "global" these three are shared by the group's qkv linears and a fourth number by the others.

    Raises:
        ValueError: `init` is not finite, or the granularity is unknown.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    init: float = 0.0
    learned: bool = True
    granularity: Granularity = "linear"
    split_qkv: bool = False
    envelope: Envelope = Envelope()

    def __post_init__(self) -> None:
        if not math.isfinite(self.init):
            raise ValueError(f"init: a finite number, not {self.init!r}; the paper starts from 0.0")
        _one_of("granularity", self.granularity, get_args(Granularity))


@dataclass(frozen=True)
class Pathway:
    """How auxiliaries are joined to a target; `Pathway()` is the paper's setting.

    `mapping` says which auxiliary block meets target block i of `depth`: "identity" (i),
    "reversed" (depth - 1 - i), or an int k (block (i + k) mod depth). With `trainable` off the
    auxiliary weights are frozen.

    Raises:
        ValueError: the mapping is neither of the two names nor an int.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    coverage: Coverage = Coverage()
    mapping: Literal["identity", "reversed"] | int = "identity"
    scale: Scale = Scale()
    trainable: bool = True

    def __post_init__(self) -> None:
        shift = isinstance(self.mapping, int) and not isinstance(self.mapping, bool)
        if not shift and self.mapping not in ("identity", "reversed"):
            raise ValueError(
                f"mapping: 'identity', 'reversed' or a whole number of blocks to shift by, "
                f"not {self.mapping!r}"
            )

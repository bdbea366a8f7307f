"""What a pathway is, as frozen values: standard library only, so that reading them costs no torch.

Defaults are the paper's setting: every linear of every block, one learned λ per linear that
starts at 0, an auxiliary that is trained along.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

LinearName = Literal["qkv", "proj", "fc1", "fc2"]
Part = Literal["qkv", "q", "k", "v", "proj", "fc1", "fc2"]
EnvelopeKind = Literal["constant", "linear", "cosine", "anneal", "hold"]
Granularity = Literal["linear", "block", "global"]
MappingName = Literal["identity", "reversed", "stretched"]
TrainingKind = Literal["frozen", "trained", "low_rank"]

LINEARS: tuple[LinearName, ...] = get_args(LinearName)
BANDS: tuple[Part, ...] = ("q", "k", "v")
_LATER = {"later": True}  # see m2pt.later


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


def _ordered_linears(linears: tuple[Part, ...]) -> tuple[Part, ...]:
    parts: tuple[Part, ...] = get_args(Part)
    twice = "qkv" in linears and set(linears) & set(BANDS)
    if not linears or len(set(linears)) < len(linears) or not set(linears) <= set(parts) or twice:
        raise ValueError(
            f"linears: at least one of {', '.join(parts)}, none twice (qkv is q, k and v together),"
            f" not {linears!r}; for no pathway at all choose no auxiliary"
        )
    if set(BANDS) <= set(linears):
        linears = ("qkv", *(name for name in linears if name not in BANDS))
    return tuple(name for name in parts if name in linears)


def _number_after(field: str, name: str, text: str) -> float:
    """The number in "name:number". Raises ValueError."""
    try:
        number = float(text.removeprefix(f"{name}:"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{field}: a number after {name!r}, as in '{name}:8', not {text!r}")
    return number


def _rank(field: str, text: str) -> int:
    rank = _number_after(field, "rank", text)
    if rank < 1 or rank != int(rank):
        raise ValueError(f"{field}: a whole rank of 1 or more, as in 'rank:8', not {text!r}")
    return int(rank)


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
    """Paper: all (Table 5 varies the linears); subsets of blocks are not in the paper."""
    linears: tuple[Part, ...] = LINEARS
    """Of qkv, proj, fc1, fc2 (paper, Table 5), and of q, k, v apart (not in the paper)."""

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
        ValueError: a number is not finite, the granularity is unknown, or fields exclude each
            other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    init: float | tuple[float, ...] = 0.0
    """Where λ starts (paper: 0; Table 5 tries 1e-6 to 1e-2). A list is spread over the depth, from
    the first block to the last, with straight lines between (not in the paper)."""
    learned: bool = True
    """Whether λ is trained, or stays at `init` (paper, Table 5)."""
    granularity: Granularity = "linear"
    """Which linears share one λ (paper: none)."""
    split_qkv: bool = False
    """A λ each for q, k and v (the paper's text; its code has one for all three)."""
    envelope: Envelope = Envelope()
    """A schedule that λ is multiplied by (not in the paper)."""
    relative: bool = field(default=False, metadata=_LATER)
    """Count `init` in ratios of norms, ‖W‖ / ‖W'‖ of the group (not in the paper)."""
    clamp: float | None = field(default=None, metadata=_LATER)
    """Keep λ's value within ±clamp: after each step it is put back there (not in the paper)."""
    merge_every: int | None = field(default=None, metadata=_LATER)
    """Every so many epochs fold λW' into W and let λ start again from 0, as FedCola does between
    its rounds (not in the paper)."""

    def __post_init__(self) -> None:
        if isinstance(self.init, list | tuple):
            object.__setattr__(self, "init", self._spread(tuple(self.init)))
        numbers = self.init if isinstance(self.init, tuple) else (self.init,)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"init: a finite number, not {self.init!r}; the paper starts from 0.0")
        _one_of("granularity", self.granularity, get_args(Granularity))
        if self.clamp is not None and not (math.isfinite(self.clamp) and self.clamp > 0):
            raise ValueError(f"clamp: a number above 0, or null for none, not {self.clamp!r}")
        if self.clamp is not None and not self.relative and max(map(abs, numbers)) > self.clamp:
            raise ValueError(
                f"clamp: {self.clamp:g} is less than init {self.init!r}, where λ starts"
            )
        if self.merge_every is not None:
            self._check_merge(self.merge_every)

    def _spread(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        if len(numbers) < 2 or self.granularity == "global":
            raise ValueError(
                f"init: a list has two numbers or more, for the first block to the last, and λ is "
                f"then per linear or per block; it is {numbers!r} with granularity "
                f"{self.granularity}"
            )
        return numbers

    def _check_merge(self, epochs: int) -> None:
        if epochs < 1:
            raise ValueError(f"merge_every: 1 epoch or more, or null for never, not {epochs!r}")
        if not self.learned or self.envelope.kind == "anneal":
            raise ValueError(
                "merge_every: λ starts again from 0 and what is merged stays, so it must be "
                "learned, and its envelope not anneal"
            )


@dataclass(frozen=True)
class AuxiliaryTraining:
    """What becomes of W' in training.

    frozen: nothing. trained: it learns from t = `start` of training on. low_rank: it stays, and a
    product of two matrices of `rank` that starts at 0 is learned beside it.
    """

    kind: TrainingKind
    start: float = 0.0
    rank: int = 0


@dataclass(frozen=True)
class Pathway:
    """How auxiliaries are joined to a target; `Pathway()` is the paper's setting.

    Raises:
        ValueError: a field has none of the forms below, or fields exclude each other.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    coverage: Coverage = Coverage()
    """Which blocks, and which of their linears, take part."""
    mapping: MappingName | int | tuple[int, ...] = "identity"
    """Which auxiliary block meets target block i of `depth`: identity (i; the paper's), reversed
    (depth - 1 - i; paper, Table 6), a number k (block (i + k) mod depth), stretched (the first
    meets the first, the last the last, those between in proportion: for auxiliaries of another
    depth), or a list with one auxiliary block for each target block."""
    scale: Scale = Scale()
    """λ."""
    trainable: bool | str = True
    """Whether W' is trained along (true; the paper's) or frozen (false), 'from:T' (trained once
    the fraction T of training is over) or 'rank:R' (W' is frozen, and a change of rank R is
    learned). The last two are not in the paper."""
    keep: Literal["same", "bf16"] = field(default="same", metadata=_LATER)
    """How frozen weights W' are held: in the target's type, or in bfloat16, which takes half of the
    memory (not in the paper)."""
    prepare: str = field(default="none", metadata=_LATER)
    """What is done to W' first: none, frobenius (each is scaled to the norm of the W that it
    meets) or 'rank:R' (cut down to its R largest singular values). Not in the paper."""
    bias: Literal["ignored", "added"] = field(default="ignored", metadata=_LATER)
    """Whether biases are joined as well, b + λb', where the target has them (the paper's equation
    5 allows it, its code ignores them)."""

    def __post_init__(self) -> None:
        if isinstance(self.mapping, list | tuple):
            object.__setattr__(self, "mapping", tuple(self.mapping))
        self._check_mapping()
        _one_of("keep", self.keep, ("same", "bf16"))
        _one_of("bias", self.bias, ("ignored", "added"))
        training = self.training  # reads it
        if self.keep == "bf16" and training.kind == "trained":
            raise ValueError(
                "keep: bf16 is for frozen weights, and trainable trains them; set "
                "trainable to false or 'rank:R', or keep to same"
            )
        if self.prepare not in ("none", "frobenius") and not self.prepare.startswith("rank:"):
            raise ValueError(f"prepare: none, frobenius or 'rank:R', not {self.prepare!r}")
        assert self.prepared_rank is None or self.prepared_rank > 0  # reads it

    @property
    def training(self) -> AuxiliaryTraining:
        """`trainable`, read."""
        if isinstance(self.trainable, bool):
            return AuxiliaryTraining("trained" if self.trainable else "frozen")
        if self.trainable.startswith("rank:"):
            return AuxiliaryTraining("low_rank", rank=_rank("trainable", self.trainable))
        if not self.trainable.startswith("from:"):
            raise ValueError(
                f"trainable: true, false, 'from:T' or 'rank:R', not {self.trainable!r}"
            )
        start = _number_after("trainable", "from", self.trainable)
        if not 0.0 < start < 1.0:
            raise ValueError(
                f"trainable: 'from:T' with a fraction of training above 0 and below 1, not "
                f"{self.trainable!r}; true trains from the start, false never"
            )
        return AuxiliaryTraining("trained", start=start)

    @property
    def prepared_rank(self) -> int | None:
        """R of `prepare: 'rank:R'`."""
        return _rank("prepare", self.prepare) if self.prepare.startswith("rank:") else None

    def _check_mapping(self) -> None:
        rule = self.mapping
        if isinstance(rule, tuple):
            whole = all(isinstance(block, int) and not isinstance(block, bool) for block in rule)
            if not rule or not whole or min(rule) < 0:
                raise ValueError(
                    f"mapping: a list has an auxiliary block, 0 or above, for each target block, "
                    f"not {list(rule)!r}"
                )
            return
        shift = isinstance(rule, int) and not isinstance(rule, bool)
        if not shift and rule not in get_args(MappingName):
            raise ValueError(
                f"mapping: {', '.join(map(repr, get_args(MappingName)))}, a whole number of blocks "
                f"to shift by, or a list of auxiliary blocks, not {rule!r}"
            )

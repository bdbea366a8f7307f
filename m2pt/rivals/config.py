"""What a rival is, as frozen values: standard library only, so that reading them costs no torch.

A rival is another answer to the question that a pathway answers. CALM and GATS join what two
models compute, and need both of them ever after; averaging joins weights once, before training;
LoRA adds parameters without any auxiliary. In each of them the target is trained as the recipe
says, as in every other arm of a study: CALM and LoRA as they were published, which leave the
target's blocks as they are, are those of `training.train: probe`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from m2pt.data.config import Task
from m2pt.models.config import ModelConfig, linear_shape
from m2pt.pathway.config import BANDS, Coverage, MappingName, Pathway
from m2pt.pathway.coverage import select

RivalKind = Literal["calm", "gats", "average", "lora"]

KINDS: tuple[RivalKind, ...] = get_args(RivalKind)
BORROWING: tuple[RivalKind, ...] = ("calm", "gats", "average")
"""Kinds that use an auxiliary."""
COMPOSED: tuple[RivalKind, ...] = ("calm", "gats")
"""Kinds that run the auxiliary beside the target, in use as well: nothing of them can be fused."""

_READS: dict[RivalKind, tuple[str, ...]] = {
    "calm": ("every", "heads"),
    "gats": ("every", "heads", "width"),
    "average": ("share", "coverage", "mapping"),
    "lora": ("rank", "coverage"),
}


@dataclass(frozen=True)
class Rival:
    """Another way than a pathway; each kind reads the fields that it needs.

    Raises:
        ValueError: a field is none of what it may be; whether it fits a model is `misfit`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: RivalKind | None = None
    """calm (cross-attention from the target's tokens to a frozen auxiliary's, arXiv 2401.02412),
    gats (gather, attend, scatter over both, arXiv 2401.08525), average (the target starts from
    (1 - share) W + share W' and trains plainly), lora (W + BA, arXiv 2106.09685, without an
    auxiliary), or null: no rival, and the other fields have no effect."""
    every: int = 4
    """calm, gats: blocks of the target from one connection to the next; the last of each `every`
    is followed by one (CALM's own figure is 4; GATS gives none that we know of)."""
    heads: int | None = None
    """calm, gats: heads of a connection's attention; null is the model's (as in CALM)."""
    width: int | None = None
    """gats: channels in which it attends; null is half of the model's for each of `heads`
    (chosen: the paper wants them few)."""
    share: float = 0.5
    """average: the weight of W' (chosen: both alike)."""
    rank: int | Literal["matched"] = "matched"
    """lora: the rank of each BA. matched: the one that trains as many parameters as a pathway
    trains beside the target. In `search.rivals` that is the arm's pathway; else it is one of one
    auxiliary, as the section `pathway` has it. Rounded, at least 1, at most what the narrowest
    matrix has: 3/4 of the width where an auxiliary is trained along in all linears (at an MLP
    ratio of 4), and 1 where it is frozen and only λ learns."""
    coverage: Coverage = field(default=Coverage())
    """average, lora: which blocks, and which of their linears, take part (lora: whole linears)."""
    mapping: MappingName | int | tuple[int, ...] = "identity"
    """average: which auxiliary block meets which of the target's, as in `pathway.mapping`."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind: one of {', '.join(KINDS)}, or null, not {self.kind!r}")
        for name in ("every", "heads", "width"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}: 1 or more, not {number!r}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(
                f"share: above 0 and at most 1, which is W' alone, not {self.share!r}; with 0 "
                "nothing is averaged"
            )
        if self.rank != "matched" and not (isinstance(self.rank, int) and self.rank >= 1):
            raise ValueError(f"rank: a whole number of 1 or more, or matched, not {self.rank!r}")
        # A pathway's mapping has the same forms, and the same words for what is none of them.
        object.__setattr__(self, "mapping", Pathway(mapping=self.mapping).mapping)

    @property
    def borrows(self) -> bool:
        """Whether it uses an auxiliary."""
        return self.kind in BORROWING

    @property
    def composed(self) -> bool:
        """Whether the auxiliary runs beside the target, also once it is trained."""
        return self.kind in COMPOSED

    def plainest(self) -> "Rival":
        """The same rival with what its kind does not read at its default."""
        read = () if self.kind is None else ("kind", *_READS[self.kind])
        return Rival(**{name: getattr(self, name) for name in read})

    def connections(self, depth: int) -> tuple[int, ...]:
        """calm, gats: the blocks, counted from 0, that a connection follows."""
        return tuple(range(self.every - 1, depth, self.every))

    def attention(self, width: int, heads: int) -> tuple[int, int]:
        """calm, gats: channels and heads that attend in a connection, in a model of so many."""
        own = self.heads or heads
        if self.kind == "calm":
            return width, own
        return self.width or own * max(1, width // own // 2), own

    def misfit(self, model: ModelConfig) -> tuple[str, str] | None:
        """(field, rule) of what a model of this shape cannot have; None where all fits."""
        return self._misfit_composed(model) or self._misfit_linears(model)

    def _misfit_composed(self, model: ModelConfig) -> tuple[str, str] | None:
        if not self.composed:
            return None
        if self.every > model.depth:
            return "every", (
                f"{self.every} blocks from one connection to the next are more than model.depth = "
                f"{model.depth}, so there would be none; take {model.depth} or fewer"
            )
        width, heads = self.attention(model.width, model.heads)
        if width % heads:
            key = "width" if self.width and self.kind == "gats" else "heads"
            return key, f"{heads} heads do not divide the {width} channels that attend"
        return None

    def _misfit_linears(self, model: ModelConfig) -> tuple[str, str] | None:
        if self.kind not in ("average", "lora"):
            return None
        try:
            select(self.coverage, model.depth)
        except ValueError as error:
            return "coverage", str(error)
        if self.kind == "average":
            rule = self.mapping
            if isinstance(rule, tuple) and len(rule) != model.depth:
                return "mapping", (
                    f"a list has one auxiliary block for each of the model's {model.depth} "
                    f"blocks, and {list(rule)} has {len(rule)}"
                )
            return None
        if apart := set(BANDS) & set(self.coverage.linears):
            return "coverage.linears", (
                f"LoRA is of whole linears, and {', '.join(sorted(apart))} are parts of one; "
                "name qkv"
            )
        most = narrowest(model, self.coverage)
        if isinstance(self.rank, int) and self.rank > most:
            return "rank", f"{self.rank} is more than the {most} that the narrowest matrix has"
        return None


def why_no_export(kind: RivalKind | None) -> str | None:
    """Why a target with a rival of this kind is not exported as a plain model; None where it is."""
    if kind not in COMPOSED:
        return None
    return (
        f"{kind} needs its auxiliary beside the target in use as well, and cannot be folded into a "
        "plain model, which is what is exported; export an arm with a pathway, lora or average"
    )


def why_no_task(kind: RivalKind | None, task: Task) -> str | None:
    """Why a rival of this kind is not for targets that tell this of samples; None where it is."""
    if task != "parts" or kind not in COMPOSED:
        return None
    return (
        f"{kind} joins what goes from block to block, and a model that tells the parts of points "
        "takes some of it out on the way; take average or lora"
    )


def shapes(model: ModelConfig, coverage: Coverage) -> list[tuple[int, int]]:
    """Outputs and inputs of every covered linear."""
    return [linear_shape(model, linear) for _, linear in select(coverage, model.depth)]


def narrowest(model: ModelConfig, coverage: Coverage) -> int:
    """The largest rank that every covered linear can have."""
    return min(min(shape) for shape in shapes(model, coverage))

"""How many parameters a rival adds to a target, and how many a pathway trains beside it."""

from dataclasses import dataclass, replace
from math import prod

from m2pt.models.config import ModelConfig, linear_shape
from m2pt.pathway.config import LINEARS, Pathway
from m2pt.pathway.coverage import scale_group, scale_places, select
from m2pt.rivals.config import Rival, narrowest, shapes

_GATS_MLP = 4
"""Hidden channels of the block that GATS attends with, over its width."""


@dataclass(frozen=True)
class Added:
    """Parameters beside the plain target's own.

    Attributes:
        trained: what the optimiser changes of them.
        frozen: of auxiliaries that run beside the target.
        inference: what is left of both in use: all with CALM and GATS, else none.
    """

    trained: int
    frozen: int
    inference: int


def added(rival: Rival, model: ModelConfig, auxiliaries: int, depth: int | None = None) -> Added:
    """What a rival with a rank of its own adds to a model.

    `depth` is the auxiliaries', where it is not the model's.
    """
    if rival.kind == "lora":
        assert isinstance(rival.rank, int)  # see `matched`
        each = sum(sum(shape) for shape in shapes(model, rival.coverage))
        return Added(trained=rival.rank * each, frozen=0, inference=0)
    if not rival.composed:
        return Added(0, 0, 0)
    connections = len(rival.connections(model.depth))
    each = _calm(model, auxiliaries) if rival.kind == "calm" else _gats(rival, model, auxiliaries)
    block = sum(prod(linear_shape(model, name)) + linear_shape(model, name)[0] for name in LINEARS)
    frozen = auxiliaries * (depth or model.depth) * block
    return Added(connections * each, frozen, connections * each + frozen)


def matched(rival: Rival, model: ModelConfig, pathway: Pathway, auxiliaries: int) -> Rival:
    """The same rival; LoRA whose rank is to match gets the one that trains as much as `pathway`."""
    if rival.kind != "lora" or rival.rank != "matched":
        return rival
    each = sum(sum(shape) for shape in shapes(model, rival.coverage))
    rank = round(trained_by_pathway(model, pathway, auxiliaries) / each)
    return replace(rival, rank=min(max(1, rank), narrowest(model, rival.coverage)))


def trained_by_pathway(model: ModelConfig, pathway: Pathway, auxiliaries: int) -> int:
    """How many numbers a pathway of so many auxiliaries trains beside the target: λ, and W', b' or
    the low-rank change of W'."""
    linears = select(pathway.coverage, model.depth)
    scale, training = pathway.scale, pathway.training
    values = {
        scale_group(scale, block, linear): scale_places(pathway.coverage, scale, linear)[0]
        for block, linear in linears
    }
    each = sum(values.values()) if scale.learned else 0
    covered = shapes(model, pathway.coverage)
    each += training.rank * sum(sum(shape) for shape in covered)
    if training.kind == "trained":
        each += sum(prod(shape) for shape in covered)
        if pathway.bias == "added":
            biased = (name for _, name in linears if name != "qkv" or model.qkv_bias)
            each += sum(linear_shape(model, name)[0] for name in biased)
    return auxiliaries * each


def _calm(model: ModelConfig, auxiliaries: int) -> int:
    """Of one connection: a norm; by auxiliary a linear, a norm and an attention."""
    width = model.width
    square, norm = width * width + width, 2 * width
    return norm + auxiliaries * (square + norm + 4 * square)


def _gats(rival: Rival, model: ModelConfig, auxiliaries: int) -> int:
    """Of one connection: a norm and a linear into the shared width for each model, a block there,
    and a linear back."""
    width, (inner, _) = model.width, rival.attention(model.width, model.heads)
    inward = 2 * width + width * inner + inner
    attention = 4 * inner * (inner + 1)
    mlp = 2 * _GATS_MLP * inner * inner + (_GATS_MLP + 1) * inner
    return (1 + auxiliaries) * inward + attention + mlp + 4 * inner + inner * width + width

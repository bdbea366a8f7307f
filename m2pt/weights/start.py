"""A target starts from weights: which tensor goes where, how, and why the others stay.

What is decided follows from names and shapes alone (`decide`); the values are worked out and
copied once everything is decided (`start_from`).
"""

from collections.abc import Mapping

import torch
from torch import Size, Tensor, nn

from m2pt.data.config import Modality
from m2pt.weights.blocks import LINEARS, block_key
from m2pt.weights.deciding import Deciding, Move, Slots
from m2pt.weights.started import Started, Unused
from m2pt.weights.whole import WholeWeights


def start_from(
    model: nn.Module, weights: WholeWeights | Mapping[str, Tensor], modality: Modality
) -> Started:
    """Let a model of samples of `modality` start from canonical weights, and say what was loaded.

    Every linear of the blocks is taken, and must fit; of the rest what there is and fits. A
    tokenizer of another modality is not, nor is a head. Where the source has LayerScale and the
    model none, it is folded into the linear before it (rows, and the bias: the same function).

    Raises:
        ValueError: a block's weight is missing, of another shape, or for a block that the model
            does not have; nothing is copied.
    """
    moves, unused = decide(Slots.of(model, modality), WholeWeights.of(weights))
    own = model.state_dict()
    with torch.no_grad():
        made = {
            move.placed.name: move.make(own[move.placed.name])
            for move in moves
            if move.make is not None
        }
        for name, value in made.items():
            own[name].copy_(value)
    return Started(tuple(move.placed for move in moves), unused)


def decide(slots: Slots, weights: WholeWeights) -> tuple[tuple[Move, ...], tuple[Unused, ...]]:
    """What becomes of every tensor of a model and of every one of the source.

    Raises:
        ValueError: as `start_from`.
    """
    _check_blocks(slots.shapes, weights.blocks)
    deciding = Deciding(slots, weights)
    moves = tuple(deciding.move(name) for name in slots.shapes)
    used = {name for move in moves for name in move.uses}
    rest = [name for name in weights.tensors if name not in used]
    unused = (*rest, *weights.unused)
    return moves, tuple(Unused(name, deciding.why_unused(name)) for name in unused)


def _check_blocks(own: Mapping[str, Size], blocks: Mapping[str, Tensor]) -> None:
    """Raises unless the blocks' linears are those of the model, each of its shape."""
    depth = sum(name.endswith(".attn.qkv.weight") for name in own)
    needed = [block_key(block, linear) for block in range(depth) for linear in LINEARS]
    _refuse("are not in the weights", [name for name in needed if name not in blocks], depth)
    unknown = [name for name in blocks if name not in own]
    if unknown and all(name.endswith("qkv.bias") for name in unknown):
        raise ValueError(
            f"target: the weights have {unknown[0]}, and the model's qkv has no bias; set "
            "model.qkv_bias to true"
        )
    _refuse("are not in the model", unknown, depth)
    for name, weight in blocks.items():
        if weight.shape != own[name]:
            raise ValueError(
                f"target: {name} has shape {tuple(weight.shape)} in the weights, but "
                f"{tuple(own[name])} in the model; model.width and model.mlp_ratio must be "
                "those of the weights"
            )


def _refuse(what: str, names: list[str], depth: int) -> None:
    if names:
        raise ValueError(
            f"target: {', '.join(names[:3])} {what} ({len(names)} in all); model.depth is {depth} "
            "and must be that of the weights"
        )

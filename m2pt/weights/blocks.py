"""Canonical block weights: the four linears of every transformer block, named as timm does.

Keys are `blocks.{i}.attn.qkv.weight` (3D, D), `blocks.{i}.attn.proj.weight` (D, D),
`blocks.{i}.mlp.fc1.weight` (H, D) and `blocks.{i}.mlp.fc2.weight` (D, H), block by block in that
order, each followed by its `bias` where it has one; D: width, H: hidden channels of the MLP. Rows
of qkv are q, k, v, one after the other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from m2pt.models.config import ModelConfig

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class WeightsError(ValueError):
    """Weights cannot be used; the message names where they come from, the rule and the remedy."""


def block_key(block: int, linear: str) -> str:
    """The canonical name of one matrix; `linear` is one of `LINEARS`."""
    return f"blocks.{block}.{linear}.weight"


def bias_key(block: int, linear: str) -> str:
    """The canonical name of one bias."""
    return f"blocks.{block}.{linear}.bias"


def matrices_of(blocks: Mapping[str, Tensor]) -> list[str]:
    """The keys of matrices among canonical block weights."""
    return [key for key in blocks if key.endswith(".weight")]


def block_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the block weights of a model with timm blocks under `.blocks`, on the CPU.

    Raises:
        WeightsError: the model has no such blocks, or a matrix breaks a rule.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Module):
        raise WeightsError(f"{type(model).__name__}: no `blocks`; give a model made of timm blocks")
    found: dict[str, Tensor] = {}
    for name, block in blocks.named_children():
        for linear in LINEARS:
            for kind in ("weight", "bias"):
                tensor = getattr(_child(block, linear), kind, None)
                if isinstance(tensor, Tensor):
                    found[f"blocks.{name}.{linear}.{kind}"] = tensor.detach().cpu().clone()
    return checked(found, type(model).__name__)


def checked(found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors in canonical order, float32 (float64 stays), after all checks.

    Raises:
        WeightsError: a matrix is missing, a tensor is of a wrong shape or type, or holds a value
            that is not finite.
    """
    matrices = matrices_of(found)
    depth = len(matrices) // len(LINEARS)
    places = [(block, linear) for block in range(max(depth, 1)) for linear in LINEARS]
    keys = [block_key(*place) for place in places]
    lacking = next((key for key in keys if key not in found), None)
    if lacking or len(matrices) != len(keys):
        raise WeightsError(
            f"{where}: {len(matrices)} block matrices, and "
            f"{lacking or block_key(depth, LINEARS[0])} "
            "is not among them; blocks 0 to the last each need qkv, proj, fc1 and fc2"
        )
    _check_shapes(found, depth, where)
    ordered = [key for place in places for key in (block_key(*place), bias_key(*place))]
    for key in (key for key in ordered if key in found):
        check_values(key, found[key], where)
    return {key: widened(found[key]) for key in ordered if key in found}


def depth_of_blocks(blocks: Mapping[str, Tensor]) -> int:
    """How many blocks canonical block weights are of."""
    return len(matrices_of(blocks)) // len(LINEARS)


def check_fit(
    blocks: Mapping[str, Tensor], model: ModelConfig, where: str, *, any_depth: bool = False
) -> None:
    """Raises unless canonical block weights have the depth, width and MLP of `model`.

    With `any_depth` the depth may be another one.

    Raises:
        WeightsError: they do not; `where` names their file.
    """
    qkv, fc1 = blocks[block_key(0, "attn.qkv")], blocks[block_key(0, "mlp.fc1")]
    depth = depth_of_blocks(blocks)
    found = (depth, qkv.shape[1], fc1.shape[0])
    wanted = (
        depth if any_depth else model.depth, model.width, int(model.width * model.mlp_ratio)
    )  # fmt: skip
    if found != wanted:
        raise WeightsError(
            f"{where}: {_size(found)}, but the model has {_size(wanted)}; every block must "
            f"fit: set model.depth={found[0]}, model.width={found[1]} and "
            f"model.mlp_ratio={found[2] / found[1]:g}, or take other weights"
        )


def _size(numbers: tuple[int, int, int]) -> str:
    return "{} blocks of width {} with {} hidden channels".format(*numbers)


def _check_shapes(found: Mapping[str, Tensor], depth: int, where: str) -> None:
    proj, fc1 = found[block_key(0, "attn.proj")], found[block_key(0, "mlp.fc1")]
    width, hidden = proj.shape[-1] if proj.ndim else 0, fc1.shape[0] if fc1.ndim else 0
    shapes = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    for block in range(depth):
        for linear, shape in shapes.items():
            for key, wanted in (
                (block_key(block, linear), shape),
                (bias_key(block, linear), shape[:1]),
            ):
                if key in found and tuple(found[key].shape) != wanted:
                    raise WeightsError(
                        f"{where}: {key} has shape {tuple(found[key].shape)}, but with width "
                        f"{width} and {hidden} hidden channels, as in block 0, it must be {wanted}"
                    )


def check_values(key: str, weight: Tensor, where: str) -> None:
    """Raises WeightsError unless a tensor is of floating point and holds finite values alone."""
    if not weight.is_floating_point():
        raise WeightsError(
            f"{where}: {key} is {weight.dtype}; weights are of floating point, not quantised"
        )
    wrong = int((~torch.isfinite(weight)).sum())
    if wrong:
        raise WeightsError(
            f"{where}: {key} holds {wrong} of {weight.numel()} values that are NaN or infinite; "
            "take a sound checkpoint"
        )


def widened(weight: Tensor) -> Tensor:
    """In float32, or in float64 if it is."""
    if weight.dtype == torch.float64:
        return weight.contiguous()
    return weight.to(torch.float32).contiguous()


def _child(module: nn.Module, path: str) -> object:
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found

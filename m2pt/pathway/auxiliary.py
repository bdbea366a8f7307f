"""Reading the weights of an auxiliary, and refusing those that do not fit the target."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from m2pt.pathway.config import LinearName
from m2pt.pathway.coverage import LINEAR_PATHS, layer_name

Auxiliary = nn.Module | Mapping[str, Tensor]

_BLOCK = re.compile(r"blocks\.(\d+)\.")


def blocks_of(transformer: nn.Module, whose: str) -> Sequence[nn.Module]:
    """The blocks of a transformer, in order.

    Raises:
        ValueError: it has no `blocks`.
    """
    blocks = getattr(transformer, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
        raise ValueError(
            f"{whose}: a module with a non-empty `blocks` is needed, as timm's VisionTransformer "
            f"has, not {type(transformer).__name__}"
        )
    return list(blocks)


def depth_of(auxiliary: Auxiliary, whose: str) -> int:
    """How many blocks an auxiliary has.

    Raises:
        ValueError: no blocks are found.
    """
    if isinstance(auxiliary, nn.Module):
        return len(blocks_of(auxiliary, whose))
    indices = [int(match.group(1)) for match in map(_BLOCK.match, auxiliary) if match]
    if not indices:
        raise ValueError(
            f"{whose}: block weights are named such as {layer_name(0, 'qkv')}.weight; found "
            f"{', '.join(list(auxiliary)[:3]) or 'nothing'}"
        )
    return max(indices) + 1


def tensor_of(
    auxiliary: Auxiliary, block: int, linear: LinearName, kind: str = "weight"
) -> Tensor | None:
    """The weight (out, in) or bias (out,) of a linear of an auxiliary; None where there is none."""
    if isinstance(auxiliary, nn.Module):
        module = linear_of(blocks_of(auxiliary, "auxiliary")[block], linear)
        found = getattr(module, kind, None)
        return found if isinstance(found, Tensor) else None
    return auxiliary.get(f"{layer_name(block, linear)}.{kind}")


def linear_of(block: nn.Module, linear: LinearName) -> nn.Module | None:
    """The module of one linear of a block; None where there is none."""
    found: object = block
    for name in LINEAR_PATHS[linear].split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def fitting_copy(found: Tensor | None, like: Tensor, here: str) -> Tensor:
    """A copy of an auxiliary tensor in the dtype and on the device of the target's own, `like`.

    `here` says in errors which weight meets which layer.

    Raises:
        ValueError: it is missing, of another shape, not of floating point, or not finite.
    """
    if found is None:
        raise ValueError(f"{here}: the auxiliary has no such weight")
    if found.shape != like.shape:
        raise ValueError(
            f"{here}: the target's weight is {tuple(like.shape)}, the auxiliary's is "
            f"{tuple(found.shape)}; both must have the same width and MLP ratio"
        )
    if not found.is_floating_point():
        raise ValueError(f"{here}: a weight of floating point is needed, not {found.dtype}")
    copy = found.detach().to(like, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise ValueError(
            f"{here}: the auxiliary's weight has NaN or infinite entries in {copy.dtype}; "
            "even λ = 0 would not keep them out of the target"
        )
    return copy

"""Weights that are spread over workers (FSDP2), whole again where something must see all of them.

Every rank calls these alike: they talk to the other ranks. On a plain model they change nothing and
talk to nobody. torch's distributed parts are imported only where there is something to gather.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

_OF_FSDP2 = ("_fsdp_", "_is_fsdp_", "__composable_api")
"""How the attributes begin that `fully_shard` leaves in modules."""


def whole(tensor: Tensor) -> Tensor:
    """A tensor's entries from all ranks, of its full shape; a plain tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    if gather is None:
        return tensor
    found: Tensor = gather()
    return found


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A copy of `value`, placed as `like` is: this rank's shard of it where `like` is sharded.

    Args:
        value: the whole tensor, the same on every rank, of the shape of `like`; or 0-d, which is
            never sharded.
        like: says on which device, and which shards.
    """
    full = value.to(like.device, copy=True)
    if not is_sharded(like) or value.ndim == 0:
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # No source: every rank cuts its own shard. The clone lets go of the rest.
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).clone()


def looked_at(model: nn.Module, layers: Iterable[str]) -> Iterator[nn.Module]:
    """The submodules of these names in turn, each with its weights whole while it is looked at.

    At most one unit of a sharded model (a block, say) is whole at a time.
    """
    for unit, names in groupby(layers, key=lambda layer: _unit_of(model, layer)):
        with _unsharded(unit):
            for name in names:
                yield model.get_submodule(name)


@torch.no_grad()
def gathered(model: nn.Module) -> nn.Module:
    """A plain copy of a model, sharded or not, with whole weights on every rank.

    The copy has the model's modules, names, values and mode and none of its hooks, and shares
    nothing that training changes. What is done to it (`fuse_pathway`, saving) is done on every rank
    alike or on one alone: it talks to nobody. The model itself stays sharded and can train on.
    """
    return _copy_of(model, {})


def is_sharded(tensor: Tensor) -> bool:
    """Whether other ranks hold parts of a tensor."""
    return hasattr(tensor, "full_tensor")


def _unit_of(model: nn.Module, layer: str) -> Any:
    """The innermost module on the way to a layer that has shards of its own; None for none."""
    unit, found = None, model
    for name in ("", *layer.split(".")):
        found = found.get_submodule(name)
        unit = found if hasattr(found, "unshard") else unit
    return unit


@contextmanager
def _unsharded(unit: Any) -> Iterator[None]:
    if unit is None:
        yield
        return
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


def _copy_of(module: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """`copies` holds what was copied so far, so that what is shared stays shared."""
    if id(module) in copies:
        known: nn.Module = copies[id(module)]
        return known
    plain = _plain_class(module)
    twin = plain.__new__(plain)
    copies[id(module)] = twin
    for name, value in vars(module).items():
        if not name.startswith(_OF_FSDP2):
            hooks = "_hooks" in name and isinstance(value, dict)  # of nn.Module; FSDP2 has some
            twin.__dict__[name] = type(value)() if hooks else copy(value)
    twin._parameters = {n: _tensor_of(p, copies) for n, p in module._parameters.items()}
    twin._buffers = {n: _tensor_of(b, copies) for n, b in module._buffers.items()}
    twin._modules = {
        n: None if child is None else _copy_of(child, copies)
        for n, child in module._modules.items()
    }
    return twin


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """What the module was before `fully_shard` put a class of its own in front."""
    if not hasattr(module, "unshard"):
        return type(module)
    from torch.distributed.fsdp import FSDPModule

    plain = next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))
    assert issubclass(plain, nn.Module)
    return plain


def _tensor_of(tensor: Any, copies: dict[int, Any]) -> Any:
    if tensor is not None and id(tensor) not in copies:
        plain = whole(tensor.detach()).clone()
        if isinstance(tensor, nn.Parameter):
            plain = nn.Parameter(plain, requires_grad=tensor.requires_grad)
        copies[id(tensor)] = plain
    return None if tensor is None else copies[id(tensor)]

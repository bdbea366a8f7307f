"""FSDP2: weights, gradients and moments in shards, one on each worker.

One unit per block and one for what is left. Every rank calls these alike. λ values are the
exception: a few numbers, some of them shared by blocks, that are whole on every rank; their
gradients are exchanged here. The same steps as DistributedDataParallel's: a gradient is the mean
of the ranks' gradients.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from m2pt.pathway.auxiliary import blocks_of
from m2pt.pathway.scale import ScaleValue
from m2pt.pathway.whole import is_sharded, whole
from m2pt.training.world import World


class Shards:
    """A model spread over the workers of a world, and what its training does differently."""

    def __init__(self, model: nn.Module, world: World) -> None:
        """Shard `model` in place; its parameters become others, so an optimiser comes later."""
        # Not at the top: it takes a second, and most trainings do not want it.
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        self._model: Any = model
        self._world = world
        self._values = _scale_values(model)
        # Over the process group that is there: a mesh of its own would be a group per trial.
        everyone = dist.group.WORLD
        assert everyone is not None  # see check_ready
        mesh = DeviceMesh.from_group(everyone, torch.device(world.device).type)
        alike: dict[str, Any] = {"mesh": mesh, "ignored_params": set(self._values)}
        for block in blocks_of(model, "target"):
            fully_shard(block, **alike)
        # Outside of forward and backward every parameter is its shard, the root's as well:
        # an optimiser or a state dict would not know those that are whole just now.
        fully_shard(model, **alike, reshard_after_forward=True)

    def exchange_when(self, last: bool) -> None:
        """Whether the next backward exchanges gradients: once per step, with the last."""
        self._model.set_requires_gradient_sync(last)
        self._model.set_is_last_backward(last)

    @torch.no_grad()
    def exchange_scales(self) -> None:
        """Give λ the mean of the ranks' gradients, once a step's last backward is over."""
        grads = [value.grad for value in self._values if value.grad is not None]
        if not grads:
            return
        together = torch.cat([grad.flatten() for grad in grads]) / self._world.size
        dist.all_reduce(together)
        parts = torch.split(together, [grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))


def _scale_values(model: nn.Module) -> list[nn.Parameter]:
    """Every λ once: linears may share it."""
    return [
        p for part in model.modules() if isinstance(part, ScaleValue) for p in part.parameters()
    ]


@torch.no_grad()
def clip_gradients(model: nn.Module, most: float) -> None:
    """Scale all gradients so that their norm, over all shards, is at most `most`."""
    learned = [p for p in model.parameters() if p.grad is not None]
    kinds = [[p for p in learned if is_sharded(p) == kind] for kind in (False, True)]
    if not all(kinds):
        nn.utils.clip_grad_norm_(learned, most)
        return
    # torch mixes no shards with plain tensors
    grads = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norms = [whole(nn.utils.get_total_norm(kind)) for kind in grads]
    total = nn.utils.get_total_norm(norms)
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, total)

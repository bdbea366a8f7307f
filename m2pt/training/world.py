"""One worker among all workers, and the few words that workers exchange outside of DDP."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Sharding = Literal["none", "fsdp2"]


@dataclass(frozen=True)
class World:
    """This worker's rank, how many workers there are, and the device that it computes on.

    `loader_workers` threads read ahead for it where data is streamed; they change no result.
    With `size` above 1 the caller has initialised the default process group, and `sharding` says
    whether every worker holds the whole model or a part of it; they learn the same.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    loader_workers: int = 2
    sharding: Sharding = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank: must lie in [0, size = {self.size}), is {self.rank}")

    @property
    def shards(self) -> bool:
        """Whether a model is spread over the workers; one worker holds it whole in any case."""
        return self.size > 1 and self.sharding == "fsdp2"


def sum_over(world: World, values: Tensor) -> Tensor:
    """Sum of `values` over all ranks, in place; every rank gets the same bits."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def largest_over(world: World, value: int) -> int:
    """Largest `value` of any rank, on every rank."""
    if world.size == 1:
        return value
    shared = torch.tensor([value], device=world.device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared.item())


def check_ready(world: World) -> None:
    """Raise RuntimeError where several workers have no process group of that size."""
    if world.size == 1:
        return
    if not dist.is_initialized():
        raise RuntimeError(
            f"world: {world.size} workers need a process group; call "
            "torch.distributed.init_process_group first"
        )
    if (dist.get_rank(), dist.get_world_size()) != (world.rank, world.size):
        raise RuntimeError(
            f"world: rank {world.rank} of {world.size}, but the process group says "
            f"{dist.get_rank()} of {dist.get_world_size()}"
        )

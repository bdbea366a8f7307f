"""One worker of a gang: its place in the gang, and the session that it hands to the loop."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from m2pt.training.memory import keep_freed_memory, return_freed_memory
from m2pt.training.world import World
from orchestrator.ray_backend.leases import answer
from orchestrator.startup import all_imported

Json = dict[str, Any]
T = TypeVar("T")
IDLE = timedelta(days=30)  # a gang may wait this long in a broadcast


@dataclass
class Gang:
    """This worker among the workers of its gang, for one attempt of the gang."""

    mailbox: ActorHandle
    number: int
    world: World
    control: Any  # a ProcessGroup; its type is not public
    """A gloo group for the gang's own words, apart from the group that trains."""
    attempt: int = 0

    @staticmethod
    def join(config: Json) -> "Gang":
        """Meet the other workers and register this attempt."""
        import ray.train
        import ray.train.torch
        from ray.util import get_current_placement_group

        torch.set_num_threads(config["threads"])
        keep_freed_memory()
        context = ray.train.get_context()
        world = World(
            context.get_world_rank(),
            context.get_world_size(),
            str(ray.train.torch.get_device()),
            config["loader_workers"],
            config["sharding"],
        )
        control: Any = dist.new_group(backend="gloo", timeout=IDLE)
        gang = Gang(config["mailbox"], config["gang"], world, control)
        workers: list[Any] = [None] * world.size
        me = {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        dist.all_gather_object(workers, me, group=control)
        all_imported()  # the libraries live as long as the gang
        places = get_current_placement_group().id.hex()
        registered = gang.mailbox.register.remote
        gang.attempt = gang.broadcast(
            lambda: answer(registered(gang.number, workers, places), gone=0)
        )
        return gang

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on every rank."""
        box: list[Any] = [make() if self.world.rank == 0 else None]
        if self.world.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        value: T = box[0]
        return value

    def alone(self) -> "Gang":
        """This worker as if it were the only one: for work that one rank does for all."""
        return replace(self, world=replace(self.world, rank=0, size=1))

    def clean(self) -> None:
        """Leave nothing of one trial to the next."""
        gc.collect()
        return_freed_memory()
        if self.world.device.startswith("cuda"):
            torch.cuda.empty_cache()

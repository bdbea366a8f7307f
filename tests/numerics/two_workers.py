"""Two workers of one training: processes of this machine that meet through a file (gloo)."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from m2pt.training.world import World

WORLD = 2
# workers are forked from a process that has imported this, and done nothing: it takes five seconds
multiprocessing.set_forkserver_preload(["tests.numerics.training_setup"])


def on_two_workers(act: Callable[[World, Path], None], folder: Path) -> None:
    """Have both call `act(world, folder)`, a function of a module, and wait for them."""
    start(_spawned, act, folder)


def start(act: Callable[..., None], *args: object) -> None:
    """Have both call `act(rank, *args)`, without a process group, and wait for them."""
    start_processes(  # type: ignore[no-untyped-call]  # torch
        act, args=args, nprocs=WORLD, start_method="forkserver"
    )


def _spawned(rank: int, act: Callable[[World, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        act(World(rank, WORLD), folder)
    finally:
        dist.destroy_process_group()

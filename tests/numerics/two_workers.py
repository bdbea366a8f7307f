"""Two workers of one training: processes of this machine that meet through a file (gloo)."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from m2pt.training.world import World

WORLD = 2


def on_two_workers(act: Callable[[World, Path], None], folder: Path) -> None:
    """Have both call `act(world, folder)`, a function of a module, and wait for them."""
    spawn(_spawned, args=(act, folder), nprocs=WORLD)  # type: ignore[no-untyped-call]  # torch


def _spawned(rank: int, act: Callable[[World, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        act(World(rank, WORLD), folder)
    finally:
        dist.destroy_process_group()

"""One worker of a gang: its place in the gang, and the session that it hands to the loop."""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from m2pt.training.memory import keep_freed_memory, return_freed_memory
from m2pt.training.report import EpochReport
from m2pt.training.state import State, from_bytes, to_bytes
from m2pt.training.world import World
from orchestrator.errors import ClusterError
from orchestrator.promotion.stored import STATE_FILE
from orchestrator.ray_backend.leases import answer
from orchestrator.storage.checkpoints import TrialCheckpoints

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

        torch.set_num_threads(config["threads"])
        keep_freed_memory()
        context = ray.train.get_context()
        world = World(
            context.get_world_rank(),
            context.get_world_size(),
            str(ray.train.torch.get_device()),
            config["loader_workers"],
        )
        control: Any = dist.new_group(backend="gloo", timeout=IDLE)
        gang = Gang(config["mailbox"], config["gang"], world, control)
        workers: list[Any] = [None] * world.size
        me = {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        dist.all_gather_object(workers, me, group=control)
        gc.collect()
        gc.freeze()  # the libraries live as long as the gang: no later collection walks them
        gang.attempt = gang.broadcast(
            lambda: answer(gang.mailbox.register.remote(gang.number, workers), gone=0)
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


class StoppedHere(Exception):
    """A trial that is taken up again was stopped where it stands: nothing is left to train."""


@dataclass
class GangSession:
    """What a trial sees of the gang: where it left off, and who hears of its epochs.

    Rank 0 writes the checkpoint first and reports then, so that a report is never ahead of what
    can be resumed; what a lost attempt reported to nobody is read from the manifest and sent again.
    """

    gang: Gang
    call: Json
    checkpoints: TrialCheckpoints
    reported: int
    rungs: frozenset[int]
    every_epochs: int
    about: Json
    """Kept in every manifest: the plan of the trial, and what it takes to rebuild it."""
    history: list[Json] = field(default_factory=list)

    @property
    def world(self) -> World:
        """This worker among all workers."""
        return self.gang.world

    def latest(self) -> State | None:
        """The newest sound checkpoint, the same one on every rank.

        Raises `StoppedHere` when it lies at a rung from which the trial is not to go on.
        """
        found = self.gang.broadcast(self._find)
        if found is None:
            return None
        meta, data = found
        self.history = list(meta["epochs"])
        if self.gang.broadcast(self._catch_up):
            raise StoppedHere
        return from_bytes(data)

    def report(self, report: EpochReport, capture: Callable[[], State]) -> bool:
        """Keep the state, then the numbers; True when the trial is to stop here."""
        if self.gang.world.rank != 0:
            return False
        value: Json = {
            "epoch": report.epoch,
            "epochs": report.epochs,
            "metrics": report.metrics,
            "scales": report.scales,
            "seconds": dict(report.seconds),
        }
        if not self.history or report.epoch == len(self.history) + 1:
            self.history.append(value)
        last = report.epoch == report.epochs
        if last or report.epoch % self.every_epochs == 0 or report.epoch in self.rungs:
            began = time.perf_counter()
            key = self._save(report.epoch, capture(), final=last)
            value["seconds"]["checkpoint"] = time.perf_counter() - began
            value["checkpoint"] = key
        return self._send(report.epoch - 1, value, wait=report.epoch in self.rungs)

    def _catch_up(self) -> bool:
        """Send what nobody heard of; at a rung, wait as the lost attempt did: is it to stop?"""
        stop, newest = False, len(self.history)
        for epoch, value in enumerate(self.history, 1):
            undecided = epoch == newest and epoch in self.rungs
            if epoch > self.reported or undecided:
                stop = self._send(epoch - 1, value, wait=undecided)
        return stop

    def _find(self) -> tuple[Json, bytes] | None:
        found = self.checkpoints.load_latest()
        if found is None:
            return None
        manifest, files = found
        return dict(manifest.meta), files[STATE_FILE]

    def _save(self, epoch: int, state: State, *, final: bool) -> str:
        meta = {"epochs": self.history, "final": final, **self.about}
        manifest = self.checkpoints.save(epoch, {STATE_FILE: to_bytes(state)}, meta)
        self.checkpoints.prune(keep=1)
        return manifest.key

    def _send(self, number: int, value: Json, *, wait: bool) -> bool:
        answer = ray.get(self.gang.mailbox.report.remote(self.call, number, value, wait))
        if answer == "stale":
            raise ClusterError(f"gang {self.gang.number} was replaced by a newer attempt")
        return bool(answer == "stop")

"""What machines offer, and how many gangs that holds. Pure, but for looking at this machine."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.experiment import Resources
from orchestrator.errors import ClusterError


@dataclass(frozen=True)
class Node:
    """What one machine offers to Ray."""

    cpus: float
    gpus: float

    def workers(self, resources: Resources) -> int | None:
        """How many workers of a gang fit here; None for any number."""
        fits = [
            int(has / one)
            for has, one in (
                (self.cpus, resources.cpus_per_worker),
                (self.gpus, resources.gpus_per_worker),
            )
            if one
        ]
        return min(fits) if fits else None


@dataclass(frozen=True)
class Capacity:
    """All machines of a cluster; `what` names it in messages."""

    what: str
    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Of all machines."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all machines."""
        return sum(node.gpus for node in self.nodes)

    def gangs(self, resources: Resources) -> int:
        """How many gangs fit at once, at most `concurrent_trials`.

        Raises `ClusterError` when not even one does; a worker cannot be spread over machines.
        """
        slots = [node.workers(resources) for node in self.nodes]
        known = [slot for slot in slots if slot is not None]
        if len(known) < len(slots):  # it asks for nothing that is counted
            return resources.concurrent_trials
        gangs = sum(known) // resources.workers
        if gangs < 1:
            raise ClusterError(self._refusal(resources, sum(known)))
        return min(resources.concurrent_trials, gangs)

    def _refusal(self, resources: Resources, slots: int) -> str:
        asked = [
            self._asked(resources, "CPUs", resources.cpus_per_worker, lambda node: node.cpus),
            self._asked(resources, "GPUs", resources.gpus_per_worker, lambda node: node.gpus),
        ]
        lacking = [text for text, lacks in asked if lacks] or [text for text, _ in asked if text]
        return (
            f"resources: one trial {' and '.join(lacking)}; {slots} of its {resources.workers} "
            "workers would fit. Lower resources.workers, cpus_per_worker or gpus_per_worker, add "
            "nodes, or join a larger cluster with --address"
        )

    def _asked(
        self, resources: Resources, unit: str, each: float, of: Callable[[Node], float]
    ) -> tuple[str, bool]:
        """What is asked for and what there is, and whether that is too little by itself."""
        if not each:
            return "", False
        has = sum(map(of, self.nodes))
        largest = max(map(of, self.nodes), default=0.0)
        needs = resources.workers * each
        spread = sum(int(of(node) / each) for node in self.nodes) < resources.workers
        text = (
            f"needs {needs:g} {unit} ({resources.workers} x {each:g}), {self.what} has {has:g} "
            f"(largest node {largest:g})"
        )
        return text, spread


def in_cluster(nodes: Sequence[Mapping[str, Any]]) -> Capacity:
    """Of a cluster, from what `ray.nodes()` says."""
    resources = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    return Capacity(
        "the cluster", tuple(Node(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in resources)
    )


def on_this_machine(resources: Resources) -> Capacity:
    """What a Ray started here could offer at most.

    Raises `ClusterError` when GPUs are asked for that the torch of this machine cannot use.
    """
    gpus = 0
    if resources.gpus_per_worker:
        import torch  # only now: it costs seconds

        gpus = torch.cuda.device_count()
        if not gpus:
            raise ClusterError(
                f"resources.gpus_per_worker: a worker asks for {resources.gpus_per_worker:g}, but "
                f"torch {torch.__version__} sees no GPU on this machine. Set it to 0, install a "
                "torch with CUDA, or join a cluster with --address"
            )
    return Capacity("this machine", (Node(float(os.cpu_count() or 1), float(gpus)),))

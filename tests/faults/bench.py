"""One open gang, and trials leased to it by hand: a study's inside without its driver."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from orchestrator.conduct.assign import Assigner
from orchestrator.ray_backend.gang import Gangs, gang_loop
from orchestrator.ray_backend.leases import lease_all, open_mailbox
from orchestrator.ray_backend.session import Cluster
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.uri import Store
from orchestrator.study.identity import Digests
from orchestrator.study.trial import plan_trial
from tests.studies import TINY, experiment

Json = dict[str, Any]
TRACKING = ("tracking=http://127.0.0.1:1",)  # which no gang ever speaks to
KERNELS_WIDTH = 12
"""Of the models that Inductor compiles to the end: one shape's kernels take 15 s of a core."""
VARIANTS = 3
"""Of one code that Dynamo keeps, instead of its own eight: each shape takes 5 s of a core."""


@dataclass
class Bench:
    """One open gang, and trials leased to it by hand."""

    mailbox: Any
    gangs: Gangs
    storage: str

    def train(self, study: str, *overrides: str, on_epoch: Any = None) -> list[Json]:
        """Train the tiny experiment's baseline in `study`; its reports without their times."""
        outcome, seen = self.lease(study, self.assignment(study, *overrides), on_epoch)
        assert outcome["kind"] == "finished", outcome
        return seen

    def stop_after(self, study: str, epoch: int) -> list[Json]:
        """Train until `epoch` is reported, where the gang waits for a decision: stop."""
        import ray

        def stop() -> None:
            ray.get(self.mailbox.stop.remote(study))

        assignment = self.assignment(study) | {"rungs": [epoch]}
        outcome, seen = self.lease(study, assignment, once(epoch, stop))
        assert outcome == {"kind": "stopped"}
        return seen

    def lease(self, study: str, assignment: Json, on_epoch: Any) -> tuple[Json, list[Json]]:
        """Lease an assignment to the gang; its outcome, and its reports without their times."""
        seen: list[Json] = []

        def on_report(name: str, value: Json) -> None:
            seen.append({key: value[key] for key in ("epoch", "metrics", "scales")})
            if on_epoch is not None:
                on_epoch(value["epoch"])

        leases = {study: assignment}
        return lease_all(self.mailbox, leases, self.gangs_died, on_report)[study], seen

    def gangs_died(self) -> bool:
        self.gangs.check()
        return False

    def assignment(self, study: str, *overrides: str) -> Json:
        tiny = experiment(TINY, self.storage, f"name={study}", *TRACKING, *overrides)
        plan = plan_trial(tiny, {}, lambda own: Digests("data"), stage="baseline", seed=0)
        store = Store.open(self.storage)
        return Assigner(study, store.uri, Accepted(1), Digests("data")).train(plan)

    def checkpoints(self, study: str, *overrides: str) -> TrialCheckpoints:
        """Where the trial's states are kept."""
        trial = self.assignment(study, *overrides)["trial"]
        return TrialCheckpoints(Store.open(self.storage), study, trial, Accepted(1))

    def state(self, study: str, *overrides: str) -> bytes:
        """The final state that the trial left."""
        found = self.checkpoints(study, *overrides).load_latest()
        assert found is not None
        return found[1]["state.safetensors"]

    def worker(self, rank: int) -> int:
        """The process of a rank, once the gang stands."""
        import ray

        while not (seats := ray.get(self.mailbox.seats.remote())):
            time.sleep(0.1)
        return int(seats[0]["workers"][rank]["pid"])

    def fail(self, study: str, *overrides: str, on_epoch: Any = None) -> Json:
        """Train the tiny experiment's baseline in `study`, which fails: how."""
        outcome, _ = self.lease(study, self.assignment(study, *overrides), on_epoch)
        assert outcome["kind"] == "failed", outcome
        return outcome

    def events(self, kind: str, study: str | None = None) -> list[Json]:
        """What happened, of this kind, to the trial in `study`."""
        import ray

        happened: list[Json] = ray.get(self.mailbox.events.remote(0))
        return [
            event
            for event in happened
            if event["kind"] == kind and study in (None, event.get("lease"))
        ]


@contextmanager
def gang_of(cluster: Cluster, storage: str, workers: int) -> Iterator[Bench]:
    """Open a gang for trials that keep their states under `storage`."""
    wanted = experiment(TINY, storage, f"resources.workers={workers}", *TRACKING)
    mailbox = open_mailbox(cluster.node_id)
    name = f"test-{secrets.token_hex(4)}"
    with Gangs(mailbox, 1, wanted.resources, name, cluster, loop=sparing_loop) as gangs:
        yield Bench(mailbox, gangs, storage)


def sparing_loop(config: Json) -> None:
    """What a worker runs: the loop of a gang that compiles kernels for models of one width."""
    from torch._dynamo import config as dynamo

    from m2pt.training import numerics

    backend = mock.patch.object(numerics, "COMPILE_BACKEND", sparing_backend)
    with backend, dynamo.patch(recompile_limit=VARIANTS):
        gang_loop(config)


def sparing_backend(graph: Any, inputs: Any) -> Any:
    """Of torch.compile: Dynamo has traced the graph, whether there are kernels or not."""
    from torch._dynamo.backends.registry import lookup_backend

    kernels = any(KERNELS_WIDTH in getattr(one, "shape", ()) for one in inputs)
    return lookup_backend("inductor" if kernels else "eager")(graph, inputs)


def once(epoch: int, action: Callable[[], None]) -> Callable[[int], None]:
    """Do something when an epoch is first reported."""
    left = [action]

    def on_epoch(reported: int) -> None:
        if reported == epoch and left:
            left.pop()()

    return on_epoch

"""Whoever of a gang is killed, and whenever: its trial goes on, and ends as if nothing had been."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.conduct.assign import Assigner
from orchestrator.ray_backend.gang import Gangs
from orchestrator.ray_backend.leases import lease_all, open_mailbox
from orchestrator.ray_backend.session import Cluster, connect
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.uri import Store
from orchestrator.study.identity import Digests
from orchestrator.study.trial import plan_trial
from tests.studies import TINY, experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connect(None) as found:
        yield found


@dataclass
class Bench:
    """One open gang, and trials leased to it by hand."""

    mailbox: Any
    gangs: Gangs
    folder: Path

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
        tiny = experiment(TINY, self.folder, f"name={study}", *overrides)
        plan = plan_trial(tiny, {}, lambda own: Digests("data"), stage="baseline", seed=0)
        store = Store.open(str(self.folder))
        return Assigner(study, store.uri, Accepted(1), Digests("data")).train(plan)

    def state(self, study: str, *overrides: str) -> bytes:
        """The final state that the trial left."""
        trial = self.assignment(study, *overrides)["trial"]
        store = Store.open(str(self.folder))
        found = TrialCheckpoints(store, study, trial, Accepted(1)).load_latest()
        assert found is not None
        return found[1]["state.safetensors"]

    def worker(self, rank: int) -> int:
        """The process of a rank, once the gang stands."""
        import ray

        while not (seats := ray.get(self.mailbox.seats.remote())):
            time.sleep(0.1)
        return int(seats[0]["workers"][rank]["pid"])

    def events(self) -> list[Json]:
        import ray

        happened: list[Json] = ray.get(self.mailbox.events.remote(0))
        return happened


@contextmanager
def gang_of(cluster: Cluster, folder: Path, workers: int) -> Iterator[Bench]:
    resources = experiment(TINY, folder, f"resources.workers={workers}").resources
    mailbox = open_mailbox(cluster.node_id)
    name = f"test-{folder.name}"
    with ExitStack() as stack:
        gangs = stack.enter_context(Gangs(mailbox, 1, resources, name, cluster.folder))
        yield Bench(mailbox, gangs, folder)


def once(epoch: int, action: Callable[[], None]) -> Callable[[int], None]:
    """Do something when an epoch is first reported."""
    left = [action]

    def on_epoch(reported: int) -> None:
        if reported == epoch and left:
            left.pop()()

    return on_epoch


def test_kills_of_workers_cost_no_epoch_and_change_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    with gang_of(cluster, tmp_path, workers=2) as bench:

        def kill(rank: int) -> None:
            os.kill(bench.worker(rank), signal.SIGKILL)

        undisturbed = bench.train("undisturbed")
        assert [report["epoch"] for report in undisturbed] == [1, 2, 3, 4]
        kill(0)
        assert bench.train("killed-idle") == undisturbed
        for rank in (0, 1):
            study = f"killed-rank-{rank}"
            assert bench.train(study, on_epoch=once(2, partial(kill, rank))) == undisturbed
            assert bench.state(study) == bench.state("undisturbed")
        lost = [event for event in bench.events() if event["kind"] == "gang_lost"]
        assert len(lost) == 3
        assert "idle" in lost[0]["why"]
        assert "killed-rank-0" in lost[1]["why"]


def test_a_used_gang_trains_as_a_fresh_one(cluster: Cluster, tmp_path: Path) -> None:
    """Trials of other shapes, precisions and failures before it leave nothing behind; and two
    epochs, a stop and two more are the same as four."""
    with gang_of(cluster, tmp_path, workers=1) as bench:
        first = bench.train("fresh")
        bench.train("wide", "model.width=32", "training.epochs=1")
        bench.train("double", "resources.precision=fp64", "training.epochs=1")
        bench.train("half", "resources.precision=bf16", "training.epochs=1")
        with pytest.raises(AssertionError, match="FloatingPointError"):
            bench.train("nan", "training.learning_rate=1e30")
        assert bench.train("used") == first
        assert bench.state("used") == bench.state("fresh")
        assert [report["epoch"] for report in bench.stop_after("halves", 2)] == [1, 2]
        assert bench.train("halves") == first  # told of the first two from the checkpoint
        assert bench.state("halves") == bench.state("fresh")
        assert not [event for event in bench.events() if event["kind"] == "gang_lost"]


def test_each_of_many_compiled_shapes_is_compiled(cluster: Cluster, tmp_path: Path) -> None:
    """More shapes than Dynamo keeps variants of (8); the first again at the end, bit by bit."""
    with gang_of(cluster, tmp_path, workers=1) as bench:
        base = ("resources.compile=true", "training.epochs=1", "model.depth=1")
        widths = [8, 12, 16, 20, 24, 28, 32, 36, 40, 8]
        seen: dict[int, Json] = {}
        for number, width in enumerate(widths):
            heads = "model.heads=1"
            (report,) = bench.train(f"shape-{number}", *base, heads, f"model.width={width}")
            assert report["metrics"]["compile/graphs"] >= 1
            assert seen.setdefault(width, report) == report

"""A head without CPUs and three nodes: a gang over two of them, trials on the head; one dies."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.tracking.record import fold
from tests.studies import (
    SEARCH,
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    finish,
    select,
    start,
    wait_until,
)
from tests.tracked import check_mlflow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # of SQLAlchemy, about MLflow's own tables
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]
PLAN = ("search.trials=1", "search.confirm=0", "search.seeds=1")
LONG = ("training.epochs=30", "training.batch_size=8", "checkpoints.every_epochs=1000")
ONE_GANG = ("resources.concurrent_trials=1", "resources.workers=2")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cluster; each node has a working folder, a cache and a state of its own."""
    from ray.cluster_utils import Cluster

    cluster = None
    for number, cpus in enumerate((0, 1, 1, 1)):
        folder = tmp_path / f"node-{number}"
        folder.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        with chdir(folder):
            if cluster is None:
                head = {"num_cpus": cpus, "include_dashboard": False}
                cluster = Cluster(initialize_head=True, head_node_args=head)
            else:
                cluster.add_node(num_cpus=cpus)
    assert cluster is not None
    yield cluster
    cluster.shutdown()


def test_a_gang_spans_nodes_trials_stay_with_the_driver_and_a_leaving_node_costs_no_epoch(
    tmp_path: Path, cluster: Any
) -> None:
    (tmp_path / "small.yaml").write_text(SEARCH)
    sets = [word for override in (*PLAN, *LONG, *ONE_GANG) for word in ("--set", override)]
    where = ("--storage", "studies", "--address", cluster.address)
    driver = start(tmp_path, "search", "small.yaml", *where, *sets, "--json")
    storage = tmp_path / "studies"
    wait_until(driver, lambda: len(select(events(storage, "small"), "epoch")) > 2)
    for title in ("ray::ImplicitFunc", "ray::Mailbox"):
        assert nodes_of(title) == {cluster.head_node.node_id}
    (gang,) = select(events(storage, "small"), "gang_opened")
    first = {worker["node"] for worker in gang["workers"]}
    assert len(first) == 2
    assert first < {node.node_id for node in cluster.worker_nodes}
    dead = gang["workers"][1]["node"]
    drain(cluster.address, dead)
    wait_until(driver, lambda: select(events(storage, "small"), "preempted"))
    kept = select(events(storage, "small"), "checkpoint")
    assert kept
    (node,) = (node for node in cluster.worker_nodes if node.node_id == dead)
    switch_off(node)
    assert finish(driver)["exit_code"] == 0

    happened = events(storage, "small")
    assert "failed" not in check_each_trial_ended_once(happened).values()
    check_no_epoch_was_trained_again(happened)
    assert not select(happened, "attempt_failed")
    started = [event["attempt"] for event in select(happened, "started", trial=kept[0]["trial"])]
    assert started == [1, 2]
    gang, again = select(happened, "gang_opened")
    second = {worker["node"] for worker in again["workers"]}
    assert len(second) == 2
    assert dead not in second
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "small", fold(happened))


def switch_off(node: Any) -> None:
    """End a node as a machine does that loses its power: the raylet and all that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for one in (*raylet.children(recursive=True), raylet):
        one.kill()


def drain(address: str, node: str) -> None:
    """Announce that a node goes away in ten minutes, as a cloud does for a spot machine."""
    words = ("drain-node", "--address", address, "--node-id", node)
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test")
    command = [sys.executable, "-m", "ray.scripts.scripts", *words, *why]
    subprocess.run([*command, "--deadline-remaining-seconds", "600"], check=True, timeout=60)


def nodes_of(title: str) -> set[str]:
    """The nodes on which there are actors of this title: each node's raylet starts its own."""
    family = psutil.Process().children(recursive=True)
    parents = [one.parent() for one in family if title in " ".join(one.cmdline())]
    words = [word for raylet in parents for word in raylet.cmdline()]
    return {word.removeprefix("--node_id=") for word in words if word.startswith("--node_id=")}

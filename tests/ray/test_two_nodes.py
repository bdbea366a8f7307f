"""A head without CPUs and three nodes: a gang over two of them, trials on the head; one dies."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator import environment
from orchestrator.tracking.record import fold
from tests.faults.beside import Beside, frozen, meanwhile, processes
from tests.studies import (
    TINY,
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    select,
    verb,
)
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = ("training.epochs=14", "training.batch_size=8", "checkpoints.every_epochs=1000")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cluster; each node has a working folder, a cache and a state of its own."""
    from ray.cluster_utils import Cluster

    cluster = None
    monkeypatch.setattr(environment, "PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # an announcement waits for 5
    bare = {"include_log_monitor": False, "no_monitor": True}
    for number, cpus in enumerate((0, 1, 1, 1)):
        folder = tmp_path / f"node-{number}"
        folder.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        with chdir(folder):
            if cluster is None:
                head = {"num_cpus": cpus, "include_dashboard": False, **bare}
                cluster = Cluster(initialize_head=True, head_node_args=head)
            else:
                cluster.add_node(num_cpus=cpus, **bare)
    assert cluster is not None
    yield cluster
    cluster.shutdown()


def test_a_gang_spans_nodes_trials_stay_with_the_driver_and_a_leaving_node_costs_no_epoch(
    tmp_path: Path, cluster: Any
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    sets = [word for override in (*LONG, "resources.workers=2") for word in ("--set", override)]

    def switch_one_off(study: Beside) -> set[str]:
        (gang,) = study.until(lambda: select(study.events(), "gang_opened"))
        study.until(lambda: select(study.events(), "epoch"))
        with frozen(gang):
            check_where_all_are(cluster, gang)
            dead = gang["workers"][1]["node"]
            drain(cluster.address, dead)
        study.until(lambda: select(study.events(), "preempted"))
        assert len(select(study.events(), "checkpoint")) == 1
        (node,) = (node for node in cluster.worker_nodes if node.node_id == dead)
        switch_off(node)
        return {dead}

    storage = tmp_path / "studies"
    with meanwhile(storage, "tiny", switch_one_off) as dead:
        where = ("--storage", "studies", "--address", cluster.address)
        assert verb(tmp_path, "search", "tiny.yaml", *where, *sets)["exit_code"] == 0
    happened = events(storage, "tiny")
    assert set(check_each_trial_ended_once(happened).values()) == {"finished"}
    check_no_epoch_was_trained_again(happened)
    assert not select(happened, "attempt_failed")
    assert [event["attempt"] for event in select(happened, "started")] == [1, 2]
    again = select(happened, "gang_opened")[1:]
    (second,) = ({worker["node"] for worker in gang["workers"]} for gang in again)
    assert len(second - dead.result()) == 2
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "tiny", fold(happened))


def check_where_all_are(cluster: Any, gang: dict[str, Any]) -> None:
    """The workers on two nodes, none of them the head; the trials, and the mailbox, on the head."""
    for title in ("ray::ImplicitFunc", "ray::Mailbox"):
        assert nodes_of(title) == {cluster.head_node.node_id}
    nodes = {worker["node"] for worker in gang["workers"]}
    assert len(nodes) == 2
    assert nodes < {node.node_id for node in cluster.worker_nodes}


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
    parents = [one.parent() for one in processes(title)]
    words = [word for raylet in parents for word in raylet.cmdline()]
    return {word.removeprefix("--node_id=") for word in words if word.startswith("--node_id=")}

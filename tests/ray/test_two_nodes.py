"""A cluster of two worker nodes and a head without CPUs: a gang over both, trials on the head."""

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
PLAN = ("search.trials=2", "search.confirm=0", "search.seeds=1", "training.epochs=12")
ONE_GANG = ("resources.concurrent_trials=1", "resources.workers=2")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cluster; each node has a working folder, a cache and a state of its own."""
    from ray.cluster_utils import Cluster

    cluster = None
    for number, cpus in enumerate((0, 1, 1)):
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


def test_a_gang_spans_nodes_and_trials_stay_with_the_driver(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "small.yaml").write_text(SEARCH)
    sets = [word for override in (*PLAN, *ONE_GANG) for word in ("--set", override)]
    where = ("--storage", "studies", "--address", cluster.address)
    driver = start(tmp_path, "search", "small.yaml", *where, *sets, "--json")
    storage = tmp_path / "studies"
    wait_until(driver, lambda: select(events(storage, "small"), "epoch"))
    for title in ("ray::ImplicitFunc", "ray::Mailbox"):
        assert nodes_of(title) == {cluster.head_node.node_id}
    assert finish(driver)["exit_code"] == 0

    happened = events(storage, "small")
    assert "failed" not in check_each_trial_ended_once(happened).values()
    (gang,) = select(happened, "gang_opened")
    nodes = {worker["node"] for worker in gang["workers"]}
    assert nodes == {node.node_id for node in cluster.worker_nodes}
    assert len(nodes) == 2
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "small", fold(happened))


def nodes_of(title: str) -> set[str]:
    """The nodes on which there are actors of this title: each node's raylet starts its own."""
    family = psutil.Process().children(recursive=True)
    parents = [one.parent() for one in family if title in " ".join(one.cmdline())]
    words = [word for raylet in parents for word in raylet.cmdline()]
    return {word.removeprefix("--node_id=") for word in words if word.startswith("--node_id=")}

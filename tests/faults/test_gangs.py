"""Whoever of a gang is killed, and whenever: its trial goes on, and ends as if nothing had been."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.ray_backend.session import Cluster, connect
from tests.faults.bench import gang_of, once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(ray_head: str) -> Iterator[Cluster]:
    with connect(ray_head) as found:
        yield found


def test_kills_of_workers_cost_no_epoch_and_change_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    """Rank 0 while it waits, and in an epoch; rank 1 in an epoch: test_pretraining_killed.py."""
    with gang_of(cluster, str(tmp_path), workers=2) as bench:

        def kill(rank: int) -> None:
            os.kill(bench.worker(rank), signal.SIGKILL)

        undisturbed = bench.train("undisturbed")
        assert [report["epoch"] for report in undisturbed] == [1, 2, 3, 4]
        kill(0)
        assert bench.train("killed-idle") == undisturbed
        assert bench.train("killed-busy", on_epoch=once(2, partial(kill, 0))) == undisturbed
        for study in ("killed-idle", "killed-busy"):
            assert bench.state(study) == bench.state("undisturbed")
        idle, busy = bench.events("gang_lost")
        assert "idle" in idle["why"]
        assert "killed-busy" in busy["why"]

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
    with gang_of(cluster, str(tmp_path), workers=2) as bench:

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
        lost = bench.events("gang_lost")
        assert len(lost) == 3
        assert "idle" in lost[0]["why"]
        assert "killed-rank-0" in lost[1]["why"]

"""Whoever of a gang is killed, and whenever: its trial goes on, and ends as if nothing had been."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.ray_backend.session import Cluster, connect
from tests.faults.bench import Json, gang_of, once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connect(None) as found:
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


def test_a_used_gang_trains_as_a_fresh_one(cluster: Cluster, tmp_path: Path) -> None:
    """Trials of other shapes, precisions and failures before it leave nothing behind; and two
    epochs, a stop and two more are the same as four."""
    with gang_of(cluster, str(tmp_path), workers=1) as bench:
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
        assert not bench.events("gang_lost")


def test_each_of_many_compiled_shapes_is_compiled(cluster: Cluster, tmp_path: Path) -> None:
    """More shapes than Dynamo keeps variants of (8); the first again at the end, bit by bit."""
    with gang_of(cluster, str(tmp_path), workers=1) as bench:
        base = ("resources.compile=true", "training.epochs=1", "model.depth=1")
        widths = [8, 12, 16, 20, 24, 28, 32, 36, 40, 8]
        seen: dict[int, Json] = {}
        for number, width in enumerate(widths):
            heads = "model.heads=1"
            (report,) = bench.train(f"shape-{number}", *base, heads, f"model.width={width}")
            assert report["metrics"]["compile/graphs"] >= 1
            assert seen.setdefault(width, report) == report

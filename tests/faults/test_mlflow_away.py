"""MLflow's server dies in the middle of a study: the study goes on, and MLflow misses nothing."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.tracking.record import fold
from tests.contract.mlflow_setup import Server
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PLAN = ("search.trials=2", "search.confirm=0", "resources.concurrent_trials=1")
LONG = ("training.epochs=40", "training.batch_size=8")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_study_goes_on_without_its_mlflow(tmp_path: Path, server: Server) -> None:
    (tmp_path / "small.yaml").write_text(SEARCH)
    sets = [word for override in (*PLAN, *LONG) for word in ("--set", override)]
    where = ("--storage", "studies", "--tracking", server.uri)
    driver = start(tmp_path, "search", "small.yaml", *where, *sets, "--json")

    def epochs() -> int:
        return len(select(events(tmp_path / "studies", "small"), "epoch"))

    wait_until(driver, lambda: epochs() > 5)
    server.kill()
    known = epochs()
    wait_until(driver, lambda: epochs() > known + 20)
    back = time.time()
    server.start()
    assert finish(driver)["exit_code"] == 0

    happened = events(tmp_path / "studies", "small")
    assert "failed" not in check_each_trial_ended_once(happened).values()
    assert happened[-1]["kind"] == "published"
    assert happened[-1]["time"] > back
    check_mlflow(server.uri, "small", fold(happened))

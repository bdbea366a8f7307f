"""MLflow that answers wrongly, slowly or not at all: nothing waits for it, nothing is missed."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.mlflow_setup import Server, Study, Target, assert_complete, driver, wait_for
from tests.proxy import Answer, Blackhole, Delay, Fault, Lose, Proxy, proxied

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DISK_FULL = b'{"error_code": "INTERNAL_ERROR", "message": "database or disk is full"}'


@pytest.fixture(scope="module")
def proxy(mlflow_server: Server) -> Iterator[Proxy]:
    with proxied(mlflow_server.uri) as proxy:
        yield proxy


@contextmanager
def spoiled(proxy: Proxy, fault: Fault, **which: str) -> Iterator[None]:
    with proxy.failing(fault, **which):
        yield


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody else writes the server's database, and takes their time."""
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


FAULTS: dict[str, Fault] = {
    "500": Answer(500, body=b'{"error_code": "INTERNAL_ERROR", "message": "wrong"}'),
    "403": Answer(403, body=b"Invalid Host header - possible DNS rebinding attack detected"),
    "full": Answer(500, body=DISK_FULL),
    "nonsense": Answer(200, body=b"<html>a proxy's own page</html>"),
    "silent": Blackhole(2.0),
    "lost": Lose(),
}


@pytest.mark.parametrize("name", [*FAULTS, "locked"])
def test_a_fault_costs_the_study_no_time_and_mlflow_nothing(
    tmp_path: Path, mlflow_server: Server, proxy: Proxy, name: str
) -> None:
    target = Target(proxy.endpoint, tmp_path.name)
    spell = locked(mlflow_server.database) if name == "locked" else spoiled(proxy, FAULTS[name])
    with driver(tmp_path, target) as (journal, tracker):
        study = Study(journal.append)
        study.whole("before")
        assert tracker.flush(60)
        with spell:
            took = clocked(lambda: several(study, "meanwhile"))
            wait_for(lambda: tracker.state.error or tracker.state.behind == 0)
            time.sleep(1.5)  # and again
        assert took < 2
        assert journal.flush(10)
        study.say("study_finished", verdict="none")
        assert tracker.close(120), tracker.state
        assert_complete(replace(target, uri=mlflow_server.uri), journal.record)


def test_a_slow_server_is_left_behind_and_catches_up(
    tmp_path: Path, mlflow_server: Server, proxy: Proxy
) -> None:
    target = Target(proxy.endpoint, tmp_path.name)
    with driver(tmp_path, target) as (journal, tracker):
        study = Study(journal.append)
        with spoiled(proxy, Delay(0.5)):
            assert clocked(lambda: several(study, "trial")) < 2
            assert tracker.state.behind > 0
            time.sleep(2)
        study.say("study_finished", verdict="none")
        assert tracker.close(120), tracker.state
        assert_complete(replace(target, uri=mlflow_server.uri), journal.record)


def clocked(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def several(study: Study, name: str) -> None:
    for number in range(3):
        study.whole(f"{name}-{number}")

"""Being asked to stop: by whom, under which owner, and once more."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest
import ray

from orchestrator.conduct import brake
from orchestrator.conduct.brake import Brake, request_stop
from orchestrator.errors import Stopped
from orchestrator.ray_backend.session import connect
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease, read_owner
from orchestrator.storage.uri import Store

OBSTINATE = """
import subprocess, sys, time
from orchestrator.conduct.brake import Brake
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store

store = Store.open(sys.argv[1])
child = "import subprocess; subprocess.run(['sleep', '99'])"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
with Lease.acquire(store, "s") as lease, Brake(store, "s", lease) as stopping:
    stopping.at_once(lease.release)
    stopping.at_once(lambda: 1 / 0, lambda: print(stopping.why, flush=True))
    print("ready", flush=True)
    while True:
        try:
            time.sleep(99)
        except BaseException:
            pass
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_and_what_it_has_started(tmp_path: Path) -> None:
    """Whatever the process is at, and whatever its last words run into."""
    command = [sys.executable, "-c", OBSTINATE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        family = started_by(driver.pid)
        driver.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert driver.poll() is None  # the first is a request
        driver.send_signal(signal.SIGINT)
        assert driver.stdout.readline() == "SIGINT was received while stopping\n"
        assert driver.wait(10) == 130
    assert not psutil.wait_procs(family, timeout=10)[1]
    held = read_owner(Store.open(str(tmp_path)), "s")
    assert held is not None
    assert held.released


def started_by(driver: int) -> list[psutil.Process]:
    """A child, and its child."""
    deadline = time.monotonic() + 30
    while len(family := psutil.Process(driver).children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return list(family)


def test_a_request_speaks_to_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brake, "POLL_SECONDS", 0.01)
    store = Store.open(str(tmp_path))
    Lease.acquire(store, "s").release()
    for epoch in (1, 2, 3):
        request_stop(store, "s", f"the test, to {epoch}", epoch=epoch)
    with Lease.acquire(store, "s") as lease, Brake(store, "s", lease) as stopping:
        assert lease.epoch == 2
        deadline = time.monotonic() + 10
        while not stopping():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
    assert stopping.why == "asked to stop by the test, to 2"
    (left,) = (entry.key for entry in store.list(layout.controls("s")))
    assert json.loads(store.get(left))["by"] == "the test, to 3"


def test_a_signal_to_ray_that_is_being_joined_stops_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own handler would end the process, and the study would not know why."""

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    store = Store.open(str(tmp_path))
    with Lease.acquire(store, "s") as lease, Brake(store, "s", lease) as stopping:
        with pytest.raises(Stopped), connect(None):
            raise AssertionError("it was not joined")
        assert stopping.why == "SIGTERM was received"

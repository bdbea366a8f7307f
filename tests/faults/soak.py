"""A study under random faults: a kill, an outage or a storm every few seconds, from a seed.

    python -m tests.faults.soak [--trials 100] [--seconds 600] [--every 6] [--seed 0]

A head of Ray, an object store behind a proxy and an MLflow server of its own, and one study whose
driver is started again whenever it died. Afterwards everything is counted from outside; what is
wrong is said and ends it with exit code 1. The same seed draws the same faults.
"""

import argparse
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator import environment
from orchestrator.errors import StorageError
from orchestrator.ray_backend.session import connect
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold
from tests import studies
from tests.contract.mlflow_setup import Server
from tests.faults.beside import processes, titled
from tests.proxy import Answer, Proxy, proxied
from tests.studies import check_each_trial_ended_once, kill_all, select
from tests.swift import Swift, running, use
from tests.tracked import check_mlflow

STUDY = """
name: soak
data: {source: digits, limit: 200}
model: {width: 16, depth: 1, heads: 2, tokenizer: {patch: 4}}
training: {epochs: 3, batch_size: 50}
resources: {concurrent_trials: 1}
failures: {retries: {worker: 50}}
search:
  sampler: random
  seeds: 1
  confirm: 0
  scheduler: {kind: none}
  space: {training.learning_rate: {loguniform: [0.0001, 0.01]}}
"""
LAYOUT = re.compile(
    r"studies/soak/(experiment\.yaml|plan\.json|journal/\d+-\d+\.jsonl|lease/\d+\.json"
    r"|trials/[^/]+/checkpoints/\d+-\d+/[^/]+|logs/\d+-\d+\.log|report/[^/]+|exports/[^/]+/[^/]+)"
    r"|blobs/sha256/[0-9a-f]{2}/[0-9a-f]{64}"
)
DRIVER_SECONDS = 900


@dataclass
class Soak:
    """What runs, and what has been done to it."""

    folder: Path
    address: str
    """Of a head of Ray."""
    server: Swift
    proxy: Proxy
    mlflow: Server
    storage: str
    trials: int
    driver: Popen[bytes] | None = None
    done: Counter[str] = field(default_factory=Counter)
    drivers: int = 0
    happened: list[dict[str, Any]] = field(default_factory=list)
    """The journal at the end."""

    def events(self) -> list[dict[str, Any]]:
        """The journal, as far as it can be read just now."""
        with suppress(StorageError):
            return read_events(Store.open(self.storage), "soak")
        return []

    def start(self) -> None:
        """Start a driver, or the next one."""
        places = ("--storage", self.storage, "--tracking", self.mlflow.uri)
        more = ("--set", f"search.trials={self.trials}", "--address", self.address)
        command = [sys.executable, "-m", "orchestrator", "search", "soak.yaml", *places, *more]
        with (self.folder / "drivers.txt").open("ab") as said:
            self.driver = Popen(
                command, cwd=self.folder, env=studies.environment(self.folder), stdout=said,
                stderr=said,
            )  # fmt: skip
        self.drivers += 1

    def said(self) -> str:
        """The end of what the drivers said."""
        return (self.folder / "drivers.txt").read_text(errors="replace")[-3000:]

    def faults(self) -> dict[str, Callable[[], object]]:
        """What can be done to it, by name."""
        return {
            "worker killed": lambda: self._kill("RayTrainWorker"),
            "trial killed": lambda: self._kill("ImplicitFunc"),
            "controller killed": lambda: self._kill("GangController"),
            "driver killed": self._kill_driver,
            "storage away": self._take_storage_away,
            "storage overloaded": lambda: self.proxy.add(
                Answer(503, "SlowDown"), method="PUT", times=12
            ),
            "connections reset": lambda: self.proxy.add(
                Answer(500, "InternalError"), method="GET", times=6
            ),
            "MLflow killed": self._restart_mlflow,
        }

    def _kill(self, title: str) -> None:
        for one in processes(title)[:1]:
            with suppress(psutil.NoSuchProcess):
                one.kill()

    def _kill_driver(self) -> None:
        assert self.driver is not None
        if self.driver.poll() is None:
            kill_all(self.driver)

    def _take_storage_away(self) -> None:
        self.server.kill()
        threading.Timer(3.0, self.server.start).start()

    def _restart_mlflow(self) -> None:
        self.mlflow.kill()
        threading.Thread(target=self.mlflow.start).start()


def soak(folder: Path, *, trials: int, seconds: float, every: float, seed: int) -> Soak:
    """Run it; what it came to is in the answer. Raises AssertionError for what is wrong."""
    draw, deadline = random.Random(seed), time.monotonic() + DRIVER_SECONDS + seconds
    (folder / "soak.yaml").write_text(STUDY)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        mlflow = Server(_made(folder / "mlflow"))
        stack.callback(mlflow.kill)
        started = stack.enter_context(ThreadPoolExecutor(1)).submit(mlflow.start)
        server = stack.enter_context(running(_made(folder / "swift")))
        proxy = stack.enter_context(proxied(server.endpoint))
        use(server, patch, AWS_ENDPOINT_URL=proxy.endpoint)
        address = stack.enter_context(_head(folder, patch))
        started.result()
        one = Soak(folder, address, server, proxy, mlflow, f"s3://{server.bucket()}/soak", trials)
        one.start()
        until = time.monotonic() + seconds
        while (code := _ended(one)) != 0:
            assert code in (None, 1, 3, 5, -signal.SIGKILL), (
                f"the driver ended with {code}: {one.said()}"
            )
            assert time.monotonic() < deadline, one.events()[-5:]
            if code is not None:
                # one storm can turn away several drivers that have not yet begun
                assert one.drivers < 5 + 3 * sum(one.done.values()), one.said()
                one.start()
            if time.monotonic() < until and one.events():
                name, fault = draw.choice(list(one.faults().items()))
                fault()
                one.done[name] += 1
            time.sleep(draw.uniform(0.5, 1.5) * every)
        check(one)
    return one


def check(one: Soak) -> None:
    """Everything, from outside: journal, MLflow, processes, placement groups, files."""
    happened = one.happened = one.events()
    ended = check_each_trial_ended_once(happened)
    assert len(ended) == one.trials + 1
    assert set(ended.values()) == {"finished"}, ended
    check_mlflow(one.mlflow.uri, "soak", fold(happened))
    strangers = [
        entry.key for entry in Store.open(one.storage).list() if not LAYOUT.fullmatch(entry.key)
    ]
    assert not strangers, strangers
    _check_cluster(one)


@contextmanager
def _head(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head of Ray; its workers have this process's variables, and no others."""
    from ray.cluster_utils import Cluster

    for name, value in studies.environment(folder).items():
        patch.setenv(name, value)
    bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **bare})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def _check_cluster(one: Soak) -> None:
    """A minute after the study, nothing of it is left on the cluster."""
    with connect(one.address):
        for _ in range(60):
            titles = ("RayTrainWorker", "ImplicitFunc", "GangController", "ray::Mailbox")
            left = [titled(process) for title in titles for process in processes(title)]
            groups = _placement_groups()
            if not left and not groups:
                return
            time.sleep(1)
    raise AssertionError(f"left on the cluster: {left} {groups}")


def _placement_groups() -> list[str]:
    """Those that still hold resources, of the cluster that this process has joined."""
    from ray.util import placement_group_table

    states = [str(group["state"]) for group in placement_group_table().values()]
    return [state for state in states if state != "REMOVED"]


def _ended(one: Soak) -> int | None:
    assert one.driver is not None
    return one.driver.poll()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Run it by hand, and say what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600, help="how long there are faults")
    parser.add_argument("--every", type=float, default=6, help="seconds from fault to fault")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    environment.prepare_ray(local=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        one = soak(Path(folder), **vars(parsed))
    print(f"{parsed.trials + 1} trials finished in {time.monotonic() - began:.0f} s")
    print(f"{sum(one.done.values())} faults, seed {parsed.seed}: {dict(sorted(one.done.items()))}")
    print(f"{one.drivers} drivers, {len(select(one.happened, 'gang_lost'))} gangs lost,", end=" ")
    print(f"{len(select(one.happened, 'attempt_failed'))} attempts failed")


if __name__ == "__main__":
    main()

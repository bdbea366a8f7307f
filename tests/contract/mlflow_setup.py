"""A real MLflow server, what it should hold, and studies to fill it with."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import environment
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.mlflow import Tracker
from orchestrator.tracking.reconcile import parameter_text
from orchestrator.tracking.record import StudyRecord
from tests.ports import free_port

Json = dict[str, Any]


class Server:
    """`mlflow server` on loopback; it can be killed and started again on the same database."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.folder = folder
        self.database = folder / "mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "files")]
        log = (self.folder / "server.txt").open("ab")
        with log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment.mlflow_server(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.txt").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        """End it, and the workers that it has started, without a chance to tidy up."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own: nobody else's
            self._process.wait()
            self._process = None


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """A server that has started; whoever kills it starts it again."""
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Target:
    """An experiment in an MLflow."""

    uri: str
    experiment: str = "experiment"

    @property
    def client(self) -> Any:
        environment.prepare_mlflow()
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    @property
    def runs(self) -> dict[str, Any]:
        """Its runs by trial id, the parent's key is ""; there must be no twins."""
        mlflow = self.client
        experiment = mlflow.get_experiment_by_name(self.experiment)
        runs = mlflow.search_runs([experiment.experiment_id], max_results=1000)
        keys = [run.data.tags.get("trial_id", "") for run in runs]
        assert len(keys) == len(set(keys)), f"twins: {sorted(keys)}"
        return dict(zip(keys, runs, strict=True))

    def track(self) -> Tracker:
        """A tracker of the study `s`."""
        return Tracker(self.uri, self.experiment, "s")


class Study:
    """Makes up the events of a study, as a driver would."""

    def __init__(self, append: Callable[[Json], object]) -> None:
        self._append = append
        self.say("study_started", experiment={"name": "s"}, experiment_sha256="0123")
        metrics = {"pretrain/loss": 0.25}
        self.say("auxiliary_ready", name="audio", sha256="f" * 64, seconds=1.0, metrics=metrics)

    def say(self, kind: str, **fields: Any) -> None:
        self._append({"kind": kind, **fields})

    def plan(self, trial: str, seed: int = 0) -> None:
        self.say(
            "planned",
            trial=trial,
            arm=f"arm-{trial}",
            label="random~audio · all",
            stage="search",
            seed=seed,
            values={"pathway.auxiliary": "audio", "training.learning_rate": 0.001},
            auxiliary="audio",
            coverage="all",
        )

    def start(self, trial: str, attempt: int = 1) -> None:
        self.say("started", trial=trial, gang="gang-0", attempt=attempt)

    def epoch(self, trial: str, epoch: int, scales: int = 8) -> None:
        names = [f"lambda/{block}.qkv" for block in range(scales)]
        self.say(
            "epoch",
            trial=trial,
            epoch=epoch,
            epochs=4,
            metrics={"val/accuracy": 0.1 * epoch, "train/loss": 1 / epoch, "odd": float("nan")},
            scales=dict.fromkeys(names, epoch / 100),
            seconds={"train": 0.5},
        )

    def whole(self, trial: str, epochs: int = 4) -> None:
        self.plan(trial)
        self.start(trial)
        for epoch in range(1, epochs + 1):
            self.epoch(trial, epoch)
        self.say("finished", trial=trial)


@contextmanager
def driver(folder: Path, target: Target) -> Iterator[tuple[Journal, Tracker]]:
    """A journal and the tracker that follows it."""
    store = Store.open(str(folder / "studies"))
    with (
        Lease.acquire(store, "s") as lease,
        Journal.open(store, "s", lease, spool=folder / "spool") as journal,
    ):
        tracker = target.track()
        journal.subscribe(tracker.observe, replay=True)
        yield journal, tracker
        tracker.close(1)


OUTCOMES = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


def assert_complete(target: Target, record: StudyRecord) -> None:
    """MLflow has exactly what the record says."""
    mlflow, runs = target.client, target.runs
    begun = {name: one for name, one in record.trials.items() if one.status != "planned"}
    assert set(runs) == {"", *begun}
    for name, trial in begun.items():
        run = runs[name]
        assert run.data.tags["mlflow.parentRunId"] == runs[""].info.run_id
        assert run.info.status == OUTCOMES.get(trial.status, run.info.status)
        assert run.data.params == {
            path: parameter_text(value) for path, value in trial.values.items()
        }
        for key in ("arm", "stage", "auxiliary", "coverage", "label"):
            assert run.data.tags[key] == str(getattr(trial, key))
        wanted: dict[str, list[tuple[int, float]]] = {}
        for entry in trial.epochs:
            values = entry.metrics | entry.scales
            values |= {f"time/{key}": value for key, value in entry.seconds.items()}
            for key, value in values.items():
                if value == value:
                    wanted.setdefault(key.replace("~", "-"), []).append((entry.epoch, value))
        last = trial.epochs[-1].epoch if trial.epochs else 0
        for key, value in trial.tested.items():
            wanted[key] = [(last, value)]
        found = {
            key: [(one.step, one.value) for one in mlflow.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        assert {key: sorted(points) for key, points in found.items()} == wanted


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

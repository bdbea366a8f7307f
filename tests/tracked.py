"""What MLflow should show of a study, and a server of it that can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from orchestrator import environment
from orchestrator.tracking.record import StudyRecord, TrialRecord

STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class Server:
    """`mlflow server` on loopback; it can be killed and started again on the same database."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "files")]
        with (self._folder / "server.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, seconds: float = 120) -> None:
        """Until it answers."""
        deadline = time.monotonic() + seconds
        while not self.answers():
            assert time.monotonic() < deadline, (self._folder / "server.txt").read_text()
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """kill -9 it, and the workers that it has started: they have a session of their own."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def check_mlflow(uri: str, study: str, record: StudyRecord) -> None:
    """MLflow has one run for the study and one for each trial, with exactly what the record says.

    The study and all its trials have ended.
    """
    environment.prepare_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_trial = {run.data.tags.get("trial_id", ""): run for run in runs}
    assert len(runs) == len(by_trial), "twins"
    assert by_trial.keys() == {"", *record.trials}
    parent = by_trial[""]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["verdict"] == record.verdict
    files = [f.path for f in client.list_artifacts(parent.info.run_id)]
    assert files == ["experiment.yaml", "plan.json", "report"]
    for name, trial in record.trials.items():
        run = by_trial[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == STATUS[trial.status]
        assert run.data.params == {path: str(value) for path, value in trial.values.items()}
        for key in ("arm", "stage", "auxiliary", "coverage", "label"):
            assert run.data.tags[key] == str(getattr(trial, key))
        history = {
            key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        assert history == _points(trial)


def _points(trial: TrialRecord) -> dict[str, list[tuple[int, float]]]:
    """Each metric's values by epoch, under the names that MLflow allows."""
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in trial.epochs:
        seconds = {f"time/{key}": value for key, value in entry.seconds.items()}
        for key, value in (entry.metrics | entry.scales | seconds).items():
            points.setdefault(key.replace("~", "-"), []).append((entry.epoch, value))
    for key, value in trial.tested.items():
        points[key] = [(trial.epochs[-1].epoch, value)]
    return points

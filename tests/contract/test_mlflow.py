"""The tracker against a real MLflow server, and against an SQLite file."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator import environment
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.mlflow import Tracker
from orchestrator.tracking.record import StudyRecord, fold

Json = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # a server takes 6 s to start, and a minute on a busy machine
    # of SQLAlchemy, about MLflow's own tables
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]


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
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "files")]
        log = (self._folder / "server.txt").open("ab")
        with log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self._folder / "server.txt").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        """End it, and the workers that it has started, without a chance to tidy up."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own: nobody else's
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


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
        names = [f"lambda/random~audio/{block}.qkv" for block in range(scales)]
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
def driver(folder: Path, uri: str) -> Iterator[tuple[Journal, Tracker]]:
    """A journal and the tracker that follows it."""
    store = Store.open(str(folder / "studies"))
    with (
        Lease.acquire(store, "s") as lease,
        Journal.open(store, "s", lease, spool=folder / "spool") as journal,
    ):
        tracker = Tracker(uri, "experiment", "s")
        journal.subscribe(tracker.observe, replay=True)
        yield journal, tracker
        tracker.close(1)


def client(uri: str) -> Any:
    environment.prepare_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str) -> dict[str, Any]:
    """The runs in MLflow by trial id, the parent's key is ""; there must be no twins."""
    mlflow = client(uri)
    experiment = mlflow.get_experiment_by_name("experiment")
    runs = mlflow.search_runs([experiment.experiment_id], max_results=1000)
    keys = [run.data.tags.get("trial_id", "") for run in runs]
    assert len(keys) == len(set(keys)), f"twins: {sorted(keys)}"
    return dict(zip(keys, runs, strict=True))


OUTCOMES = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


def assert_complete(uri: str, record: StudyRecord) -> None:
    """MLflow has exactly what the record says."""
    mlflow, runs = client(uri), runs_of(uri)
    begun = {name: one for name, one in record.trials.items() if one.status != "planned"}
    assert set(runs) == {"", *begun}
    for name, trial in begun.items():
        run = runs[name]
        assert run.data.tags["mlflow.parentRunId"] == runs[""].info.run_id
        assert run.info.status == OUTCOMES.get(trial.status, run.info.status)
        assert run.data.params == {path: str(value) for path, value in trial.values.items()}
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


def test_a_study_is_followed_and_ends_in_time(tmp_path: Path, server: Server) -> None:
    with driver(tmp_path, server.uri) as (journal, tracker):
        study = Study(journal.append)
        tracker.add_artifact("experiment.yaml", "name: s\n")
        tracker.add_artifact("report/report.html", b"<html></html>")
        study.whole("done")
        assert tracker.flush(60)
        study.plan("halved")
        study.start("halved")
        study.epoch("halved", 1)
        wait_for(lambda: "halved" in runs_of(server.uri))
        running = runs_of(server.uri)["halved"]
        assert running.info.status == "RUNNING"
        assert running.data.tags["outcome"] == "running"
        study.say("stopped", trial="halved", why="halving at epoch 1")
        study.plan("broken")
        study.start("broken")
        study.say("failed", trial="broken", error="out of memory", attempts=3)
        study.plan("never begun")
        wait_for(lambda: "broken" in runs_of(server.uri), 10)
        wait_for(lambda: runs_of(server.uri)["broken"].info.status == "FAILED", 10)
        study.say("tested", trial="done", metrics={"test/accuracy": 0.5})
        study.say("exported", trial="done", key="exports/done")
        study.say("study_finished", verdict="nothing is claimed")
        assert tracker.close(60)
        url = tracker.state.compare_url
        assert url is not None
        assert url.startswith(f"{server.uri}/#/experiments/")
        assert_complete(server.uri, journal.record)
    runs = runs_of(server.uri)
    outcomes = {name: runs[name].data.tags.get("outcome") for name in runs}
    assert outcomes == {"": None, "done": "finished", "halved": "stopped", "broken": "failed"}
    assert runs["halved"].data.tags["why"] == "halving at epoch 1"
    assert runs["broken"].data.tags["error"] == "out of memory"
    assert runs["done"].data.tags["exported"] == "exports/done"
    done = journal.record.trials["done"]
    assert done.ended is not None
    assert runs["done"].info.end_time == round(done.ended * 1000)
    parent = runs[""]
    assert (parent.info.status, parent.data.tags["verdict"]) == ("FINISHED", "nothing is claimed")
    assert parent.data.metrics == {"auxiliary/audio/pretrain/loss": 0.25}
    mlflow = client(server.uri)
    listed = [file.path for file in mlflow.list_artifacts(parent.info.run_id)]
    assert listed == ["experiment.yaml", "report"]
    local = mlflow.download_artifacts(parent.info.run_id, "experiment.yaml", str(tmp_path))
    assert Path(local).read_text() == "name: s\n"


def test_a_server_killed_in_the_middle_misses_nothing(tmp_path: Path, server: Server) -> None:
    with driver(tmp_path, server.uri) as (journal, tracker):
        study = Study(journal.append)
        ended = threading.Event()

        def drive() -> None:
            number = 0
            while not ended.is_set():
                study.whole(f"trial-{number:03d}")
                number += 1
                time.sleep(0.2)

        driving = threading.Thread(target=drive)
        driving.start()
        for uptime in (1.5, 0.3):
            wait_for(lambda: tracker.state.error is None and tracker.state.points)
            time.sleep(uptime)
            server.kill()
            before = len(journal.events)
            time.sleep(1.5)
            assert len(journal.events) > before + 20
            assert tracker.state.behind > 0
            server.start()
        ended.set()
        driving.join()
        study.plan("open")
        study.start("open")
        study.epoch("open", 1)
        study.say("study_finished", verdict="none")
        assert tracker.close(120)
        assert tracker.state.error is None
        assert_complete(server.uri, journal.record)
        assert runs_of(server.uri)["open"].info.status == "KILLED"
        print(len(journal.record.trials), "trials,", tracker.state.points, "points")


def test_mlflow_is_rebuilt_from_the_journal(tmp_path: Path) -> None:
    first, second = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b' / 'b.db'}"
    with driver(tmp_path, first) as (journal, tracker):
        study = Study(journal.append)
        study.whole("done")
        study.plan("open")
        study.start("open")
        study.epoch("open", 1)
        tracker.add_artifact("plan.json", "{}")
        assert tracker.close(60)
        assert tracker.state.compare_url is None
        assert runs_of(first)["open"].info.status == "KILLED"
        assert runs_of(first)[""].info.status == "KILLED"
    before = runs_of(first)
    assert before["open"].data.tags["outcome"] == "interrupted"
    for uri in (second, first, second):  # an empty one, and those that have it all
        with driver(tmp_path, uri) as (journal, tracker):
            assert tracker.close(60)
            assert_complete(uri, journal.record)
    assert runs_of(first)["done"].info.run_id == before["done"].info.run_id
    with driver(tmp_path, first) as (journal, tracker):
        study = Study(journal.append)
        study.start("open", attempt=2)
        study.epoch("open", 1)
        study.epoch("open", 2)
        assert tracker.flush(60)
        again = runs_of(first)
        assert again["open"].info.status == "RUNNING"
        assert again["open"].info.run_id == before["open"].info.run_id
        assert again["done"].info.status == "FINISHED"
        study.say("finished", trial="open")
        study.say("study_finished", verdict="none")
        assert tracker.close(60)
        assert_complete(first, journal.record)
    assert (tmp_path / "mlflow-artifacts" / "experiment").is_dir()
    assert fold(journal.events).status == "finished"


def test_an_end_is_not_overwritten_by_a_weaker_state(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    events: list[Json] = []
    study = Study(lambda event: events.append({"time": 1000.0 + len(events), **event}))
    study.whole("done")
    for number in (len(events), len(events) - 1, 8):  # a journal that lost its tail
        tracker = Tracker(uri, "experiment", "s")
        for event in events[:number]:
            tracker.observe(event)
        assert tracker.close(60)
        assert runs_of(uri)["done"].info.status == "FINISHED"


def test_a_twin_goes_and_another_study_of_the_name_stays(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    events: list[Json] = []
    study = Study(lambda event: events.append({"time": 1000.0 + len(events), **event}))
    study.whole("done")

    def track(shift: float) -> None:
        tracker = Tracker(uri, "experiment", "s")
        for event in events:
            tracker.observe({**event, "time": event["time"] + shift})
        assert tracker.close(60)

    track(0)
    mlflow, run = client(uri), runs_of(uri)["done"]
    twin = {k: v for k, v in run.data.tags.items() if k not in ("rung", "outcome")}
    mlflow.create_run(run.info.experiment_id, tags=twin)
    track(0)
    assert runs_of(uri)["done"].info.run_id == run.info.run_id
    track(3600)
    assert len(mlflow.search_runs([run.info.experiment_id])) == 4


def test_many_metrics_in_little_time(tmp_path: Path, server: Server) -> None:
    """Prints a rate: it is a measurement, and a guard against one request per metric."""
    events: list[Json] = []
    study = Study(lambda event: events.append({"time": 1000.0 + len(events), **event}))
    for number in range(20):
        trial = f"trial-{number}"
        study.plan(trial)
        study.start(trial)
        for epoch in range(1, 11):
            study.epoch(trial, epoch, scales=48)
        study.say("finished", trial=trial)
    tracker = Tracker(server.uri, "experiment", "s")
    tracker.observe(events[0])
    assert tracker.flush(60)
    start = time.monotonic()
    for event in events[1:]:
        tracker.observe(event)
    assert time.monotonic() - start < 1
    assert tracker.flush(120)
    seconds = time.monotonic() - start
    points = tracker.state.points
    print(f"{points} points in {seconds:.1f} s: {points / seconds:.0f} points/s")
    assert points == 20 * 10 * 51 + 1
    assert points / seconds > 50
    assert tracker.close(60)


def test_a_server_that_is_not_there_costs_no_time(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with driver(tmp_path, uri) as (journal, tracker):
        start = time.monotonic()
        study = Study(journal.append)
        for number in range(20):
            study.whole(f"trial-{number}")
        assert time.monotonic() - start < 2
        assert not tracker.close(0.5)
        assert time.monotonic() - start < 4
        assert tracker.state.behind == len(journal.events)

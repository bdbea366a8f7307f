"""The tracker against a real MLflow server, and against an SQLite file."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from orchestrator.storage import lease as lease_module
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.tracking.mlflow import Tracker
from orchestrator.tracking.record import fold
from tests.contract.mlflow_setup import (
    Json,
    Server,
    Study,
    Target,
    assert_complete,
    driver,
    wait_for,
)
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # a server takes 6 s to start, and a minute on a busy machine
]


@pytest.fixture
def remote(mlflow_server: Server, tmp_path: Path) -> Target:
    """An experiment of its own on the server."""
    return Target(mlflow_server.uri, tmp_path.name)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with MLflow's tables, which take seconds to make."""
    file = tmp_path_factory.mktemp("tables") / "made.db"
    tracker = Target(f"sqlite:///{file}").track()
    tracker.observe({"kind": "takeover", "time": 1.0, "segments": [], "manifests": []})
    assert tracker.close(120)
    return file


@pytest.fixture
def local(tables: Path, tmp_path: Path) -> Target:
    """An SQLite file."""
    shutil.copy(tables, tmp_path / "a.db")
    return Target(f"sqlite:///{tmp_path / 'a.db'}", "of its own")


def test_a_study_is_followed_and_ends_in_time(tmp_path: Path, remote: Target) -> None:
    with driver(tmp_path, remote) as (journal, tracker):
        study = Study(journal.append)
        tracker.add_artifact("experiment.yaml", "name: s\n")
        tracker.add_artifact("report/report.html", b"<html></html>")
        study.whole("done")
        assert tracker.flush(60)
        study.plan("halved")
        study.start("halved")
        study.epoch("halved", 1)
        wait_for(lambda: "halved" in remote.runs)
        running = remote.runs["halved"]
        assert running.info.status == "RUNNING"
        assert running.data.tags["outcome"] == "running"
        study.say("stopped", trial="halved", why="halving at epoch 1")
        study.plan("broken")
        study.start("broken")
        study.say("failed", trial="broken", error="out of memory", attempts=3)
        study.plan("never begun")
        wait_for(lambda: "broken" in remote.runs, 10)
        wait_for(lambda: remote.runs["broken"].info.status == "FAILED", 10)
        study.say("tested", trial="done", metrics={"test/accuracy": 0.5})
        study.say("exported", trial="done", key="exports/done")
        study.say("study_finished", verdict="nothing is claimed")
        assert tracker.close(60)
        url = tracker.state.compare_url
        assert url is not None
        assert url.startswith(f"{remote.uri}/#/experiments/")
        assert_complete(remote, journal.record)
    runs = remote.runs
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
    mlflow = remote.client
    listed = [file.path for file in mlflow.list_artifacts(parent.info.run_id)]
    assert listed == ["experiment.yaml", "report"]
    local = mlflow.download_artifacts(parent.info.run_id, "experiment.yaml", str(tmp_path))
    assert Path(local).read_text() == "name: s\n"


def test_an_owner_sends_nothing_while_it_may_be_none(
    tmp_path: Path, local: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was frozen for longer than its lease lasts; then it is still the owner, then it is not."""
    slept, clock = [0.0], lease_module._clock
    monkeypatch.setattr(lease_module, "_clock", lambda: clock() + slept[0])

    def shown() -> list[Json]:
        return [run.to_dictionary() for run in local.runs.values()]

    lease = Lease.acquire(Store.open(str(tmp_path / "studies")), "s", heartbeat_seconds=60)
    tracker = Tracker(local.uri, local.experiment, "s", lease)
    study = Study(lambda event: tracker.observe({"time": 1.0, **event}))
    study.plan("t")
    study.start("t")
    assert tracker.flush(60)
    before, slept[0] = shown(), 20.0
    study.epoch("t", 1)
    assert not tracker.flush(1.5)
    assert shown() == before
    lease.confirm()
    assert tracker.flush(60)
    assert shown() != before
    before, slept[0] = shown(), 40.0
    study.say("failed", trial="t", error="of an owner that is none", attempts=1)
    lease.lose("somebody else has it", 2)
    began = time.monotonic()
    assert not tracker.close(60)
    assert time.monotonic() - began < 5
    assert shown() == before


def test_a_server_killed_in_the_middle_misses_nothing(
    tmp_path: Path, mlflow_server: Server, remote: Target
) -> None:
    with driver(tmp_path, remote) as (journal, tracker):
        study = Study(journal.append)
        ended, quiet = threading.Event(), threading.Event()

        def drive() -> None:
            number = 0
            while not ended.wait(1.0 if quiet.is_set() else 0.4):
                study.whole(f"trial-{number:03d}")
                number += 1

        driving = threading.Thread(target=drive)
        driving.start()
        for uptime in (1.5, 0.3):
            wait_for(lambda: tracker.state.error is None and tracker.state.points)
            time.sleep(uptime)
            mlflow_server.kill()
            quiet.set()
            before = len(journal.events)
            time.sleep(1.5)
            assert len(journal.events) >= before + 7
            assert tracker.state.behind > 0
            mlflow_server.start()
            quiet.clear()
        ended.set()
        driving.join()
        study.plan("open")
        study.start("open")
        study.epoch("open", 1)
        study.say("study_finished", verdict="none")
        assert tracker.close(240)
        assert tracker.state.error is None
        assert_complete(remote, journal.record)
        assert remote.runs["open"].info.status == "KILLED"
        print(len(journal.record.trials), "trials,", tracker.state.points, "points")


def test_mlflow_is_rebuilt_from_the_journal(tmp_path: Path, local: Target) -> None:
    other = Target(f"sqlite:///{tmp_path / 'b' / 'b.db'}")
    with driver(tmp_path, local) as (journal, tracker):
        study = Study(journal.append)
        study.whole("done")
        study.plan("open")
        study.start("open")
        study.epoch("open", 1)
        tracker.add_artifact("plan.json", "{}")
        study.say("study_stopped", why="asked to")
        assert tracker.close(60)
        assert tracker.state.compare_url is None
    before = local.runs
    assert before["open"].info.status == "KILLED"
    assert before["open"].data.tags["outcome"] == "interrupted"
    assert (before[""].info.status, before[""].data.tags["why"]) == ("KILLED", "asked to")
    for target in (other, local, other):  # an empty one, and those that have it all
        with driver(tmp_path, target) as (journal, tracker):
            assert tracker.close(60)
            assert_complete(target, journal.record)
    assert local.runs["done"].info.run_id == before["done"].info.run_id
    with driver(tmp_path, local) as (journal, tracker):
        study = Study(journal.append)
        study.start("open", attempt=2)
        study.epoch("open", 1)
        study.epoch("open", 2)
        assert tracker.flush(60)
        again = local.runs
        assert (again[""].info.status, again[""].data.tags["why"]) == ("RUNNING", "")
        assert again["open"].info.status == "RUNNING"
        assert again["open"].info.run_id == before["open"].info.run_id
        assert again["done"].info.status == "FINISHED"
        study.say("finished", trial="open")
        study.say("study_finished", verdict="none")
        assert tracker.close(60)
        assert_complete(local, journal.record)
    assert (tmp_path / "mlflow-artifacts" / local.experiment).is_dir()
    assert fold(journal.events).status == "finished"


def test_an_end_is_not_overwritten_by_a_weaker_state(local: Target) -> None:
    events: list[Json] = []
    study = Study(lambda event: events.append({"time": 1000.0 + len(events), **event}))
    study.whole("done")
    for number in (len(events), len(events) - 1, 5):  # a journal that lost its tail
        tracker = local.track()
        for event in events[:number]:
            tracker.observe(event)
        assert tracker.close(60)
        assert local.runs["done"].info.status == "FINISHED"


def test_a_twin_goes_and_another_study_of_the_name_stays(local: Target) -> None:
    events: list[Json] = []
    study = Study(lambda event: events.append({"time": 1000.0 + len(events), **event}))
    study.whole("done")

    def track(shift: float) -> None:
        tracker = local.track()
        for event in events:
            tracker.observe({**event, "time": event["time"] + shift})
        assert tracker.close(60)

    track(0)
    mlflow, run = local.client, local.runs["done"]
    twin = {k: v for k, v in run.data.tags.items() if k not in ("rung", "outcome")}
    mlflow.create_run(run.info.experiment_id, tags=twin)
    track(0)
    assert local.runs["done"].info.run_id == run.info.run_id
    track(3600)
    assert len(mlflow.search_runs([run.info.experiment_id])) == 4


def test_many_metrics_in_little_time(remote: Target) -> None:
    """Prints a rate: it is a measurement, and a guard against one request per metric."""
    events: list[Json] = []
    study = Study(lambda event: events.append({"time": 1000.0 + len(events), **event}))
    for number in range(10):
        trial = f"trial-{number}"
        study.plan(trial)
        study.start(trial)
        for epoch in range(1, 6):
            study.epoch(trial, epoch, scales=48)
        study.say("finished", trial=trial)
    tracker = remote.track()
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
    assert points == 10 * 5 * 51 + 1
    assert points / seconds > 25
    assert tracker.close(60)


def test_a_server_that_is_not_there_costs_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target(f"http://user:canary@127.0.0.1:{free_port()}")
    with driver(tmp_path, target) as (journal, tracker):
        start = time.monotonic()
        study = Study(journal.append)
        for number in range(20):
            study.whole(f"trial-{number}")
        assert time.monotonic() - start < 2
        assert not tracker.close(0.5)
        assert time.monotonic() - start < 4
        assert tracker.state.behind == len(journal.events)
        wait_for(lambda: tracker.state.error)
    assert "canary" not in f"{tracker.state}{caplog.text}"

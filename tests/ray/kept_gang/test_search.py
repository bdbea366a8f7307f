"""One search through the command line, and every verb that looks at it or goes on with it."""

import html
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest
from safetensors.torch import load_file

from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import JournalReader
from orchestrator.tracking.record import StudyRecord, fold
from tests.contract.mlflow_setup import Target
from tests.faults.beside import Beside, meanwhile
from tests.ray.kept_gang.kept import Kept
from tests.studies import (
    SEARCH,
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    finish,
    said,
    select,
    start,
    verb,
    wait_until,
)
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = 40  # of the study that is watched: seconds, so that it is not over too soon


@dataclass(frozen=True)
class Searched:
    """A finished search: where it lies and what the verb printed."""

    folder: Path
    printed: dict[str, Any]

    @property
    def storage(self) -> Path:
        return self.folder / "studies"

    @property
    def events(self) -> list[dict[str, Any]]:
        return events(self.storage, "small")

    @property
    def record(self) -> StudyRecord:
        return fold(self.events)

    def file(self, key: str) -> Path:
        """A file of the study."""
        return self.storage / "studies" / "small" / key


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, kept: Kept) -> Searched:
    folder = tmp_path_factory.mktemp("search")
    (folder / "small.yaml").write_text(SEARCH)
    return Searched(folder, kept.study(folder, "search", "small.yaml", "--storage", "studies"))


def test_each_trial_ends_once_and_the_printed_figures_are_the_journals(searched: Searched) -> None:
    ended = check_each_trial_ended_once(searched.events)
    record, printed = searched.record, searched.printed
    assert printed["exit_code"] == 0
    assert printed["status"] == record.status == "finished"
    assert not printed["already_done"]
    assert printed["verdict"] == record.verdict
    assert {name: trial["status"] for name, trial in printed["trials"].items()} == ended
    stages = [trial.stage for trial in record.trials.values()]
    assert {stage: stages.count(stage) for stage in stages} == {
        "baseline": 2,
        "search": 4,
        "confirm": 1,  # the other of its two seeds is the search's
        "control": 2,
    }
    assert "failed" not in ended.values()
    for row in printed["leaderboard"]:
        trials = [t for t in record.trials.values() if t.label == row["label"]]
        last = [t.epochs[-1].metrics["val/accuracy"] for t in trials]
        assert row["mean"] == pytest.approx(sum(last) / len(last))
        assert row["n"] == len(last)


def test_report_and_export_lie_in_the_store(searched: Searched) -> None:
    record = searched.record
    page = searched.file("report/report.html").read_text()
    assert str(record.verdict) in html.unescape(page).replace("−", "-")
    assert json.loads(searched.file("report/report.json").read_text())["verdict"]["text"] == (
        record.verdict
    )
    (trial,) = (trial for trial in record.trials.values() if trial.exported is not None)
    assert trial.exported is not None
    assert trial.proof is not None
    weights = load_file(searched.storage / trial.exported / "model.safetensors")
    assert sum(one.numel() for one in weights.values()) == trial.proof["parameters_exported"]
    assert trial.proof["test"]["disagreements"] == 0
    assert searched.printed["proofs"] == {trial.trial: trial.proof}


def test_mlflow_shows_what_the_journal_says(searched: Searched) -> None:
    check_mlflow(f"sqlite:///{searched.storage / 'mlflow.db'}", "small", searched.record)


def test_the_same_command_again_trains_nothing_and_says_so(searched: Searched) -> None:
    before, began = searched.events, time.monotonic()
    code, out, err = said(searched.folder, "search", "small.yaml", "--storage", "studies")
    assert code == 0, err
    assert "is finished; nothing was trained" in out
    assert searched.record.verdict is not None
    assert searched.record.verdict.split()[0] in out
    assert searched.events == before
    assert time.monotonic() - began < 60  # 3 s on a quiet machine: no gang was opened


def test_status_report_and_export_of_a_finished_study(searched: Searched) -> None:
    folder, storage = searched.folder, ("--storage", "studies")
    status = verb(folder, "status", "small", *storage)
    assert (status["status"], status["owner"], status["running"]) == ("finished", None, [])
    assert sum(status["trials"].values()) == len(searched.record.trials)
    report = verb(folder, "report", "small", *storage, "--to", "again")
    same = ("verdict", "leaderboard", "trials", "proofs", "timing")
    assert {key: report[key] for key in same} == {key: searched.printed[key] for key in same}
    assert (folder / "again" / "report.html").exists()
    export = verb(folder, "export", "small", *storage, "--to", "model")
    ours = load_file(folder / "model" / "model.safetensors")
    theirs = load_file(searched.file(f"exports/{export['trial']}/model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_another_experiment_of_the_same_name_is_refused(searched: Searched) -> None:
    before = searched.events
    other = ("search", "small.yaml", "--storage", "studies", "--set", "training.epochs=5")
    refused = verb(searched.folder, *other, check=False)
    assert refused["exit_code"] == 2
    assert "training.epochs: 4 there, 5 here" in refused["error"]
    assert searched.events == before


def test_a_study_is_watched_stopped_and_resumed(searched: Searched, kept: Kept) -> None:
    """`train`: a study of one trial, on the auxiliary that the search has made. Its gang stands
    still while it is looked at."""
    folder, name, storage = searched.folder, "small-train", ("--storage", "studies")
    longer = ("--set", f"training.epochs={EPOCHS}", "--set", "pathway.auxiliary=audio")
    slower = ("--set", "training.batch_size=16")
    rarer = ("--set", "checkpoints.every_epochs=100")
    joined = ("--address", kept.address, "--json")
    driver = start(folder, "train", "small.yaml", *storage, *longer, *slower, *rarer, *joined)
    wait_until(driver, lambda: len(select(events(searched.storage, name), "epoch")) > 2)
    worker = worker_of(events(searched.storage, name))
    worker.suspend()

    status, report, refused = (
        verb(folder, one, name, *storage, check=False) for one in ("status", "report", "resume")
    )
    assert (status["exit_code"], status["status"]) == (0, "running")
    assert f"pid {driver.pid} " in status["owner"]
    (running,) = status["running"]
    assert 2 < running["epoch"] < running["epochs"] == EPOCHS
    assert (report["exit_code"], report["status"]) == (0, "running")
    assert len(report["leaderboard"]) == 1
    assert refused["exit_code"] == 2
    assert f"already running: process {driver.pid}" in refused["error"]

    threading.Timer(5, worker.resume).start()  # once the driver has read that it is to stop
    assert not verb(folder, "stop", name, *storage)["running"]
    assert finish(driver, check=False)["exit_code"] == 130
    stopped = events(searched.storage, name)
    check_what_a_stop_leaves(searched.storage, name, stopped)

    with meanwhile(searched.storage, name, interrupt_once_it_trains):
        ended = kept.study(folder, "resume", name, *storage, check=False)
    assert ended["exit_code"] == 130
    stopped = events(searched.storage, name)
    assert (stopped[-1]["kind"], stopped[-1]["why"]) == ("study_stopped", "SIGINT was received")

    resumed = kept.study(folder, "resume", name, *storage)
    assert (resumed["exit_code"], resumed["status"]) == (0, "finished")
    happened = events(searched.storage, name)
    assert happened[: len(stopped)] == stopped
    assert list(check_each_trial_ended_once(happened).values()) == ["finished"]
    assert [e["epoch"] for e in select(happened, "epoch")] == list(range(1, EPOCHS + 1))
    check_no_epoch_was_trained_again(happened)
    check_mlflow(f"sqlite:///{searched.storage / 'mlflow.db'}", name, fold(happened))


def interrupt_once_it_trains(study: Beside) -> None:
    """Ctrl-C, which comes to this process."""
    trained = len(select(study.events(), "epoch"))
    study.until(lambda: len(select(study.events(), "epoch")) > trained + 2)
    os.kill(os.getpid(), signal.SIGINT)


def worker_of(happened: list[dict[str, Any]]) -> psutil.Process:
    """The only one of the only gang."""
    (gang,) = select(happened, "gang_opened")
    (worker,) = gang["workers"]
    return psutil.Process(worker["pid"])


def check_what_a_stop_leaves(storage: Path, name: str, stopped: list[dict[str, Any]]) -> None:
    """The reason, a state at the next boundary although none was due, and MLflow's runs ended."""
    assert stopped[-1]["kind"] == "study_stopped"
    assert "orchestrator stop" in stopped[-1]["why"]
    assert verb(storage.parent, "status", name, "--storage", storage.name)["status"] == "stopped"
    trained = len(select(stopped, "epoch"))
    assert 2 < trained < EPOCHS
    (trial,) = fold(stopped).trials.values()
    store = Store.open(str(storage))
    accepted = JournalReader(store, name).view().accepted
    drained = TrialCheckpoints(store, name, trial.trial, accepted).latest()
    assert drained is not None
    assert trained <= drained.step < EPOCHS  # the journal may have missed the last epochs
    runs = Target(f"sqlite:///{storage / 'mlflow.db'}", name).runs
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert runs.keys() == {"", trial.trial}


def test_states_are_let_go_of_and_what_nobody_needs_is_collected(searched: Searched) -> None:
    folder, storage = searched.folder, ("--storage", "studies")
    before, store = searched.events, Store.open(str(searched.storage))
    kept = {trial.trial for trial in searched.record.trials.values() if trial.tested}
    resumed = verb(folder, "resume", "small", *storage, "--set", "checkpoints.keep_trials=0")
    assert (resumed["already_done"], resumed["verdict"]) == (True, searched.printed["verdict"])
    assert "let go of their states" in resumed["stderr"]
    more = searched.events[len(before) :]
    assert {event["kind"] for event in more} == {"takeover", "published"}
    keys = [entry.key for entry in store.list("studies/small/trials")]
    assert {key.split("/")[3] for key in keys} == kept
    gone = next(name for name in searched.record.trials if name not in kept)
    export = ("export", "small", *storage, "--to", "model-2")
    assert verb(folder, *export)["proof"]["keys_equal"]
    refused = verb(folder, *export, "--trial", gone, check=False)
    assert refused["exit_code"] == 2
    assert "checkpoints.keep_trials" in refused["error"]

    free = blobs.put(store, b"of no study")
    collected = verb(folder, "gc", "studies", "--grace", "0", "--yes")
    assert [one["key"] for one in collected["blobs"]] == [layout.blob(free)]
    assert (collected["in_use"], collected["leftovers"]) == (1, [])
    assert verb(folder, *export)["trial"] in kept

"""kill -9 of a whole study: the same command goes on elsewhere from what lies under its prefix."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from m2pt.data.load import load
from m2pt.training.loop import Training
from m2pt.training.session import MemorySession, drive
from orchestrator.promotion.stored import final_state, inputs_from
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import JournalReader
from orchestrator.tracking.record import TrialRecord, fold
from tests.faults.elsewhere import start_elsewhere
from tests.studies import (
    SEARCH,
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    finish,
    kill_all,
    select,
    start,
    wait_until,
)
from tests.tracked import check_mlflow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # of SQLAlchemy, about MLflow's own tables
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]
PLAN = ("search.trials=2", "search.confirm=0", "resources.concurrent_trials=1")
LONG = ("training.epochs=16", "training.batch_size=8")


def test_the_same_command_goes_on_after_everything_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text(SEARCH)
    sets = [word for override in (*PLAN, *LONG) for word in ("--set", override)]
    command = ("search", "small.yaml", "--storage", "studies", *sets)
    storage = tmp_path / "studies"

    driver = start(tmp_path, *command)
    wait_until(driver, lambda: one_is_done_and_one_has_begun(events(storage, "small")))
    kill_all(driver)
    before = events(storage, "small")
    assert one_is_done_and_one_has_begun(before)

    far = leave_only_the_prefix(tmp_path, storage)
    plant_pickles(storage, far / "unpickled")
    (far / "small.yaml").write_text(SEARCH)
    words = ("search", "small.yaml", "--storage", str(storage), *sets, "--json")
    assert finish(start_elsewhere(far, "--host", "far", "--expiry", "5", *words))["exit_code"] == 0
    assert not (far / "unpickled").exists()
    after = events(storage, "small")
    ended = check_each_trial_ended_once(after)
    assert after[: len(before)] == before
    assert len(ended) == 4
    assert "failed" not in ended.values()
    check_no_epoch_was_trained_again(after)
    check_who_trained_what(before, after)
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "small", fold(after))
    monkeypatch.setenv("XDG_CACHE_HOME", str(far / "cache"))
    for name, trial in fold(before).trials.items():
        if trial.epochs:
            check_it_is_as_if_nothing_had_been(storage, fold(after).trials[name])


def leave_only_the_prefix(tmp_path: Path, storage: Path) -> Path:
    """The folder of another machine, where there is no state and no cache; MLflow is empty."""
    for path in storage.iterdir():
        if path.name.startswith("mlflow"):
            path.rename(tmp_path / path.name)
    assert {path.name for path in storage.iterdir()} == {"blobs", "pretrained", "studies"}
    far = tmp_path / "far"
    far.mkdir()
    return far


class Canary:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


def plant_pickles(storage: Path, file: Path) -> None:
    """Wherever Ray Tune, Ray Train or torch would look for what they have pickled."""
    bad = pickle.dumps(Canary(file))
    study = storage / "studies" / "small"
    checkpoints = [path.parent for path in study.rglob("manifest.json")]
    assert checkpoints
    for folder in (storage, study, *checkpoints):
        for name in ("tuner.pkl", "searcher-state-2026.pkl", "state.pt", ".metadata", "state.pkl"):
            (folder / name).write_bytes(bad)


def one_is_done_and_one_has_begun(happened: list[dict[str, Any]]) -> bool:
    """One trial has finished, another has some of its epochs."""
    done = {event["trial"] for event in select(happened, "finished")}
    return bool(done) and any(
        2 < len(trial.epochs) < 16
        for trial in fold(happened).trials.values()
        if trial.trial not in done
    )


def check_who_trained_what(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """What had finished was not touched again; what had begun went on from its checkpoint."""
    then, now = fold(before), fold(after)
    for name, trial in then.trials.items():
        again = select(after[len(before) :], "started", trial=name)
        assert len(again) == (0 if trial.over else 1)
        if trial.over:
            assert now.trials[name].epochs == trial.epochs
        elif trial.epochs:
            old = [key for key in now.trials[name].checkpoints.values() if "/000001-" in key]
            new = [key for key in now.trials[name].checkpoints.values() if "/000002-" in key]
            assert len(old) >= len(trial.checkpoints) > 2
            assert new
            assert now.trials[name].epochs[: len(trial.epochs)] == trial.epochs


def check_it_is_as_if_nothing_had_been(storage: Path, trial: TrialRecord) -> None:
    """The same figures, to the last bit, as from a training in plain Python, without any study."""
    store = Store.open(str(storage))
    accepted = JournalReader(store, "small").view().accepted
    meta, _ = final_state(TrialCheckpoints(store, "small", trial.trial, accepted))
    made = inputs_from(store, meta["inputs"])
    data, session = load(made.config.data), MemorySession(stop_after=len(trial.epochs))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        drive(Training(made.config, data, made.auxiliaries), session)
    finally:
        torch.set_num_threads(threads)
    alone = [(report.epoch, report.metrics) for report in session.reports]
    assert [(epoch.epoch, epoch.metrics) for epoch in trial.epochs] == alone

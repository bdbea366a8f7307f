"""kill -9 of a whole study: the same command goes on elsewhere from what lies under its prefix."""

import pickle
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage import process
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.tracking.record import fold
from tests.faults.alone import check_it_is_as_if_nothing_had_been
from tests.ray.kept_gang.kept import Kept
from tests.studies import (
    SEARCH,
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    kill_all,
    select,
    start,
    wait_until,
)
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = 12
PLAN = ("search.trials=2", "search.seeds=1", "search.confirm=0", "resources.concurrent_trials=1")
LONG = (f"training.epochs={EPOCHS}", "training.batch_size=8")
# no other test makes these weights: where the study goes on, no cache can hold them
OWN = ("auxiliaries.audio.pretrain.batch_size=48",)


def test_the_same_command_goes_on_after_everything_was_killed(
    tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text(SEARCH)
    sets = [word for override in (*PLAN, *LONG, *OWN) for word in ("--set", override)]
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
    words = ("search", "small.yaml", "--storage", str(storage), *sets)
    with elsewhere(monkeypatch, far):
        assert kept.study(far, *words)["exit_code"] == 0
    assert not (far / "unpickled").exists()
    after = events(storage, "small")
    ended = check_each_trial_ended_once(after)
    assert after[: len(before)] == before
    assert list(ended.values()) == ["finished"] * 3
    assert [event["epoch"] for event in select(after, "takeover")] == [1, 2]
    check_no_epoch_was_trained_again(after)
    check_who_trained_what(before, after)
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "small", fold(after))
    monkeypatch.setenv("XDG_CACHE_HOME", str(far / "cache"))
    store = Store.open(str(storage))
    for name, trial in fold(before).trials.items():
        if trial.epochs:
            check_it_is_as_if_nothing_had_been(store, "small", fold(after).trials[name])


def leave_only_the_prefix(tmp_path: Path, storage: Path) -> Path:
    """The folder of another machine, where there is no state and no cache; MLflow is empty."""
    for path in storage.iterdir():
        if path.name.startswith("mlflow"):
            path.rename(tmp_path / path.name)
    assert {path.name for path in storage.iterdir()} == {"blobs", "pretrained", "studies"}
    far = tmp_path / "far"
    far.mkdir()
    return far


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch, far: Path) -> Iterator[None]:
    """This process is one of another machine: nobody here knows that the owner is dead. An owner
    who is silent for five seconds is given up."""
    acquire: Any = Lease.acquire
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "far")
        patch.setitem(acquire.__func__.__kwdefaults__, "expiry_seconds", 5)
        process.machine.cache_clear()
        try:
            assert process.machine().startswith("far ")
            yield
        finally:
            process.machine.cache_clear()


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
        2 < len(trial.epochs) < EPOCHS
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

"""Two drivers, three at a time: one owner, whoever is stopped, woken, or told to stop at once."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.storage import layout
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.storage.lease import read_owner
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import JournalReader
from orchestrator.tracking.record import fold
from tests.contract.mlflow_setup import Target
from tests.faults.beside import frozen
from tests.faults.elsewhere import start_elsewhere
from tests.studies import (
    PATIENCE_SECONDS,
    TINY,
    check_no_epoch_was_trained_again,
    events,
    finish,
    kill_all,
    select,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Driver = subprocess.Popen[str]
STUDY = "tiny"
AT_ONCE_SECONDS = 10  # 2 s on a quiet machine; in good order it takes longer than an epoch


@dataclass
class Story:
    """What became of three drivers of one study."""

    first: int
    """Process id of the one of the first two that runs."""
    refused: Any
    known: list[dict[str, Any]]
    """The events when the first was frozen."""
    at_once: Any
    at_once_seconds: float
    happened: list[dict[str, Any]]
    """The events once the second had ended."""
    before: dict[str, Any]
    """What readers saw when the first was woken, and when it had ended."""
    after: dict[str, Any]
    woken: Any
    late: Path
    """The segment that it was about to put."""
    storage: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    drivers: list[Driver] = []
    try:
        yield told(tmp_path_factory.mktemp("drivers"), drivers)
    finally:
        for one in drivers:
            if one.poll() is None:
                kill_all(one)


def told(folder: Path, drivers: list[Driver]) -> Story:
    """Two start within 100 ms, and one is refused. The other is frozen between its last check and
    a put. A third one takes over, elsewhere; a second signal ends it. The frozen one is woken."""
    (folder / "tiny.yaml").write_text(TINY)
    storage = folder / "studies"
    place, freeze = ("--storage", str(storage), "--json"), ("--stop-before", '"epoch":4,"epochs"')
    longer = ("--set", "training.epochs=5000", "--set", "training.batch_size=8")
    for name in ("one", "two"):
        search = ("search", str(folder / "tiny.yaml"), *longer, *place)
        drivers.append(start_elsewhere(folder / name, *freeze, *search))
    first, refused = who_runs(drivers)
    wait_until(first, lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED)
    known = events(storage, STUDY)

    elsewhere = ("--host", "elsewhere", "--expiry", "5")
    (gang,) = select(known, "gang_opened")
    with frozen(gang):  # for as long as they would only take the time of a core
        second = start_elsewhere(folder / "far", *elsewhere, "resume", STUDY, *place)
        drivers.append(second)
        wait_until(second, lambda: trained_under(storage, 2) > 0)
        left, trained = newest_under(storage, 1), trained_under(storage, 2)
    wait_until(second, lambda: newest_under(storage, 1) > left)
    wait_until(second, lambda: trained_under(storage, 2) > trained + 2)
    began, at_once = time.monotonic(), interrupted_twice(second)
    at_once_seconds = time.monotonic() - began

    happened, before = events(storage, STUDY), seen(storage)
    late = storage / layout.segment(STUDY, 1, len(segments(storage, 1)))
    family = descendants(first)
    os.kill(first.pid, signal.SIGCONT)
    woken = finish(first, check=False)
    check_gone(family)
    after = seen(storage)
    return Story(
        first.pid, refused, known, at_once, at_once_seconds, happened, before, after, woken, late,
        storage,
    )  # fmt: skip


def test_of_two_drivers_at_once_one_runs_and_one_is_told_which(story: Story) -> None:
    assert story.refused["exit_code"] == 2
    said = (
        rf"'tiny' is already running: process {story.first} on \S+, since \d{{4}}-\d\d-\d\d \d\d:"
    )
    assert re.search(said, story.refused["error"])
    assert [event["epoch"] for event in select(story.happened, "takeover")] == [1, 2]


def test_a_second_signal_ends_a_driver_at_once(story: Story) -> None:
    """It says so and lets go of the study, whose record is whole."""
    ended = story.at_once
    assert ended["exit_code"] == 130
    assert story.at_once_seconds < AT_ONCE_SECONDS
    assert "SIGINT was received while stopping" in ended["error"]
    assert "`resume`, goes on from here" in ended["error"]
    assert "Traceback" not in ended["stderr"]
    assert story.happened[-1]["kind"] == "study_stopped"
    held = read_owner(Store.open(str(story.storage)), STUDY)
    assert held is not None
    assert (held.epoch, held.host, held.released) == (2, "elsewhere", True)
    states = {value[0] for what, value in story.before.items() if what.endswith(" status")}
    assert states == {"KILLED"}


def test_a_driver_takes_over_from_one_that_is_silent_and_trains_no_epoch_again(
    story: Story,
) -> None:
    """Although the workers of the frozen one went on, and would have deleted what it left."""
    assert story.happened[: len(story.known)] == story.known
    (trial,) = fold(story.happened).trials.values()
    assert [one.epoch for one in trial.epochs] == list(range(1, len(trial.epochs) + 1))
    check_no_epoch_was_trained_again(story.happened)
    assert trained_under(story.storage, 2) > 2
    (latest_of_it,) = story.before["latest"]
    assert "/000002-" in latest_of_it


def test_a_driver_woken_past_its_lease_changes_nothing_that_anybody_sees(story: Story) -> None:
    assert story.woken["exit_code"] == 3
    assert "lost lease epoch 1 < 2: process" in story.woken["error"]
    assert "on elsewhere has taken over" in story.woken["error"]
    assert story.late.exists()
    before, after = story.before, story.after
    changed = {
        what: (before.get(what), after.get(what))
        for what in before.keys() | after.keys()
        if before.get(what) != after.get(what)
    }
    assert not changed, "\n".join(f"{what}: {values}"[:200] for what, values in changed.items())


def who_runs(drivers: list[Driver]) -> tuple[Driver, Any]:
    """The one that runs, and what the other one ended with."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while all(one.poll() is None for one in drivers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    refused, first = sorted(drivers, key=lambda one: one.poll() is None)
    assert first.poll() is None
    return first, finish(refused, check=False)


def interrupted_twice(driver: Driver) -> Any:
    """How a driver ends upon SIGINT, and again; none of its processes is left."""
    family = descendants(driver)
    assert len(family) > 3
    os.kill(driver.pid, signal.SIGINT)
    time.sleep(0.1)  # or they would be one
    os.kill(driver.pid, signal.SIGINT)
    ended = finish(driver, check=False)
    check_gone(family)
    return ended


def trained_under(storage: Path, epoch: int) -> int:
    """How many checkpoints the owner of a fencing epoch has told of."""
    told = select(events(storage, STUDY), "checkpoint")
    return sum(f"/{epoch:06d}-" in event["key"] for event in told)


def newest_under(storage: Path, epoch: int) -> int:
    """The last epoch of which the workers under a fencing epoch have left a checkpoint."""
    found = [entry.key for entry in Store.open(str(storage)).list()]
    numbers = [at for key in found if (at := layout.parse_manifest(key)) is not None]
    return max((at.step for at in numbers if at.epoch == epoch), default=0)


def segments(storage: Path, epoch: int) -> list[Any]:
    """Those of the journal that were written under a fencing epoch."""
    keys = JournalReader(Store.open(str(storage)), STUDY).keys()
    return [at for at in keys if at.epoch == epoch]


def latest(storage: Path, trial: str) -> str | None:
    """The checkpoint from which a trial would go on."""
    store = Store.open(str(storage))
    accepted = JournalReader(store, STUDY).view().accepted
    found = TrialCheckpoints(store, STUDY, trial, accepted).latest()
    return None if found is None else found.key


def seen(storage: Path) -> dict[str, Any]:
    """What readers see: journal, accepted manifests, checkpoints, files for people, MLflow."""
    view = JournalReader(Store.open(str(storage)), STUDY).view()
    study = storage / layout.study(STUDY)
    files = [
        file for name in ("experiment.yaml", "plan.json", "report") for file in study.rglob(name)
    ]
    return {
        "events": view.events,
        "segments": view.segments,
        "accepted": view.accepted,
        "latest": [latest(storage, name) for name in fold(view.events).trials],
        **{str(file): file.read_bytes() for file in files if file.is_file()},
        **runs(storage),
    }


def runs(storage: Path) -> dict[str, Any]:
    """All of MLflow's runs, deleted ones too: status, end, tags, parameters, figures."""
    client = Target(f"sqlite:///{storage / 'mlflow.db'}", STUDY).client
    experiments = [one.experiment_id for one in client.search_experiments()]
    found: dict[str, dict[str, Any]] = {}
    for run in client.search_runs(experiments, run_view_type=3, max_results=1000):
        about = found[run.info.run_id] = {
            "status": (run.info.status, run.info.end_time, run.info.lifecycle_stage),
            "tags": run.data.tags,
            "parameters": run.data.params,
        }
        for key in run.data.metrics:
            for one in client.get_metric_history(run.info.run_id, key):
                about[f"{key} {one.step} {one.timestamp}"] = one.value
    return {f"{run} {what}": value for run, about in found.items() for what, value in about.items()}


def descendants(driver: Driver) -> list[psutil.Process]:
    """All processes that a driver has started, and those that they have."""
    found: list[psutil.Process] = psutil.Process(driver.pid).children(recursive=True)
    return found


def check_gone(family: list[psutil.Process]) -> None:
    """None of them lives on; one that nobody has waited for is gone, too."""
    deadline = time.monotonic() + 30
    while living := [one for one in family if one.is_running() and not is_zombie(one)]:
        assert time.monotonic() < deadline, living
        time.sleep(0.2)


def is_zombie(one: psutil.Process) -> bool:
    try:
        return bool(one.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

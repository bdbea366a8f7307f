"""kill -9 of what a driver stands over, in the middle of a study: its trials, a gang's worker."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.tracking.record import fold
from tests.studies import (
    SEARCH,
    TINY,
    check_each_trial_ended_once,
    events,
    finish,
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
TRIAL = "ray::ImplicitFunc"  # the title of a process in which Tune runs a function
MAILBOX = "ray::Mailbox"
PLAN = ("search.trials=2", "search.confirm=0", "resources.concurrent_trials=1")
LONG = ("training.epochs=30", "training.batch_size=8")


def test_kills_of_trials_and_of_a_worker_cost_no_trial_and_no_epoch(
    tmp_path: Path, ray_head: str
) -> None:
    (tmp_path / "small.yaml").write_text(SEARCH)
    sets = [word for override in (*PLAN, *LONG) for word in ("--set", override)]
    where = ("--storage", "studies", "--address", ray_head, "--json")
    driver = start(tmp_path, "search", "small.yaml", *where, *sets)

    def epochs_of(number: int) -> int:
        """How many epochs the trial that was begun as `number`-th has."""
        happened = events(tmp_path / "studies", "small")
        begun = [e["trial"] for e in select(happened, "started")]
        return len(select(happened, "epoch", trial=begun[number])) if number < len(begun) else 0

    wait_until(driver, lambda: epochs_of(0) > 2)
    killed = processes(TRIAL)
    assert killed
    for one in killed:
        one.kill()
    wait_until(driver, lambda: epochs_of(1) > 2)
    (gang,) = select(events(tmp_path / "studies", "small"), "gang_opened")
    os.kill(gang["workers"][0]["pid"], signal.SIGKILL)

    assert finish(driver)["exit_code"] == 0
    happened = events(tmp_path / "studies", "small")
    assert "failed" not in check_each_trial_ended_once(happened).values()
    first, second, *_ = dict.fromkeys(e["trial"] for e in select(happened, "started"))
    check_what_the_journal_says(happened, first, second, len(killed))
    trained = {e["trial"]: e["epoch"] for e in select(happened, "epoch")}
    assert trained[first] == trained[second] == 30
    check_mlflow(f"sqlite:///{tmp_path / 'studies' / 'mlflow.db'}", "small", fold(happened))


def test_a_lost_mailbox_ends_the_study_and_is_held_against_no_trial(
    tmp_path: Path, ray_head: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    where = ("--storage", "studies", "--address", ray_head, "--json")
    driver = start(tmp_path, "search", "tiny.yaml", *where, "--set", "training.epochs=5000")
    wait_until(driver, lambda: len(select(events(tmp_path / "studies", "tiny"), "epoch")) > 2)
    (mailbox,) = processes(MAILBOX)
    mailbox.kill()
    ended = finish(driver, check=False)
    assert ended["exit_code"] == 5
    assert "mailbox" in ended["error"]
    assert "Traceback" not in ended["stderr"]
    record = fold(events(tmp_path / "studies", "tiny"))
    assert {trial.status for trial in record.trials.values()} <= {"planned", "running"}


def processes(title: str) -> list[psutil.Process]:
    """Those of the head that have this title."""
    family = psutil.Process().children(recursive=True)
    return [one for one in family if title in " ".join(one.cmdline())]


def check_what_the_journal_says(
    happened: list[dict[str, Any]], first: str, second: str, killed: int
) -> None:
    """Trials were restarted while the first was trained; the gang was lost during the second."""
    restarted = select(happened, "trial_restarted")
    assert len(restarted) == killed
    assert first in {event["trial"] for event in restarted}
    assert {event["why"] for event in restarted} == {"the trial's process died"}
    (lost,) = select(happened, "gang_lost")
    assert f"during {second}" in lost["why"]
    assert [event["attempt"] for event in select(happened, "gang_opened")] == [1, 2]
    assert [event["attempt"] for event in select(happened, "started", trial=first)] == [1]
    assert [event["attempt"] for event in select(happened, "started", trial=second)] == [1, 2]

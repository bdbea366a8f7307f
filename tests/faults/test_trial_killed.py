"""kill -9 of a study's trials, and of a gang's worker, in the middle of it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.record import fold
from tests.faults.beside import Beside, frozen, meanwhile, processes
from tests.studies import TINY, check_each_trial_ended_once, events, select, verb
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRIAL = "ray::ImplicitFunc"  # the title of a process in which Tune runs a function
EPOCHS = 12
SPACE = "search.space={training.learning_rate: {loguniform: [0.0001, 0.01]}}"
PLAN = ("search.sampler=random", "search.trials=2", SPACE)
LONG = (f"training.epochs={EPOCHS}", "training.batch_size=8")


def test_kills_of_trials_and_of_a_worker_cost_no_trial_and_no_epoch(
    tmp_path: Path, ray_head: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    sets = [word for override in (*PLAN, *LONG) for word in ("--set", override)]

    def kill(study: Beside) -> int:
        study.until(lambda: epochs_of(study.events(), 0) > 0)
        (gang,) = select(study.events(), "gang_opened")
        with frozen(gang):  # or the trial might end in the meantime
            killed = processes(TRIAL)
            assert killed
            for one in killed:
                one.kill()
        study.until(lambda: epochs_of(study.events(), 1) > 0)
        os.kill(gang["workers"][0]["pid"], signal.SIGKILL)
        return len(killed)

    storage = tmp_path / "studies"
    with meanwhile(storage, "tiny", kill) as killed:
        where = ("--storage", "studies", "--address", ray_head)
        assert verb(tmp_path, "search", "tiny.yaml", *where, *sets)["exit_code"] == 0
    happened = events(storage, "tiny")
    assert set(check_each_trial_ended_once(happened).values()) == {"finished"}
    first, second, third = dict.fromkeys(e["trial"] for e in select(happened, "started"))
    check_what_the_journal_says(happened, first, second, killed.result())
    trained = {e["trial"]: e["epoch"] for e in select(happened, "epoch")}
    assert trained == dict.fromkeys((first, second, third), EPOCHS)
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "tiny", fold(happened))


def epochs_of(happened: list[dict[str, Any]], number: int) -> int:
    """How many epochs the trial that was begun as `number`-th has."""
    begun = [e["trial"] for e in select(happened, "started")]
    return len(select(happened, "epoch", trial=begun[number])) if number < len(begun) else 0


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

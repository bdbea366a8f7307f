"""One study under one cap after another: each drains it, and a larger one goes on."""

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.record import StudyRecord, fold
from tests.contract.mlflow_setup import Target
from tests.studies import (
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    select,
    verb,
)
from tests.tracked import check_mlflow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # of SQLAlchemy, about MLflow's own tables
    pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning"),
]

SMALL = """
name: capped
data: {source: digits, limit: 400}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
training: {epochs: 20, batch_size: 20}
resources: {concurrent_trials: 1}
search:
  trials: 2
  seeds: 2
  confirm: 0
  scheduler: {kind: none}
  space: {training.learning_rate: {choice: [0.001, 0.002, 0.003]}}
"""


def test_a_study_goes_on_from_cap_to_cap(tmp_path: Path, ray_head: str) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    storage = tmp_path / "studies"
    place = ("--storage", "studies")

    def run(*words: str) -> tuple[Any, list[dict[str, Any]]]:
        return verb(tmp_path, *words, *place, check=False), events(storage, "capped")

    # wall clock: reached while gangs are being opened
    search = ("search", "small.yaml", "--address", ray_head, "--set")
    ended, happened = run(*search, "budget.wall_clock_hours=1e-3")
    assert ended["exit_code"] == 7
    assert happened[-1]["kind"] == "study_stopped"
    assert happened[-1]["why"].startswith("budget.wall_clock_hours is spent: ")
    assert happened[-1]["budget"]["cap"] == "wall_clock_hours"
    assert "`orchestrator resume capped --storage" in ended["error"]
    assert "--set budget.wall_clock_hours=" in ended["error"]

    # the same command again says so at once
    began = time.monotonic()
    again, unchanged = run(*search, "budget.wall_clock_hours=1e-3")
    assert (again["exit_code"], unchanged) == (7, happened)
    assert time.monotonic() - began < 60  # 2 s on a quiet machine: Ray was not started

    # training: reached in the midst of the first trial, which keeps its checkpoint
    ended, happened = run(*search, "budget.training_hours=1e-5")
    assert ended["exit_code"] == 7
    assert happened[-1]["budget"]["cap"] == "training_hours"
    record = fold(happened)
    assert record.status == "stopped"
    assert any(trial.checkpoints for trial in record.trials.values())
    assert not any(trial.over for trial in record.trials.values())
    assert statuses(storage) == {"": "KILLED"} | dict.fromkeys(begun(record), "KILLED")
    status, _ = run("status", "capped")
    assert status["budget"]["training_hours"]["spent"] >= 1e-5
    assert status["budget"]["training_hours"]["cap"] == 1e-5
    assert status["budget"]["wall_clock_hours"]["cap"] is None

    # trials: what was started runs out, and the last place is the second baseline's
    ended, happened = run("resume", "capped", "--address", ray_head, "--set", "budget={trials: 3}")
    assert ended["exit_code"] == 7
    record = fold(happened)
    ended_as = [(trial.stage, trial.status) for trial in record.trials.values()]
    assert ended_as == [(stage, "finished") for stage in ("baseline", "search", "baseline")]
    assert happened[-1]["budget"] == {"cap": "trials", "spent": 3, "limit": 3}
    assert statuses(storage) == {"": "KILLED"} | dict.fromkeys(begun(record), "FINISHED")

    # what the study is cannot be changed
    refused, unchanged = run("resume", "capped", "--set", "training.epochs=21")
    assert (refused["exit_code"], unchanged) == (2, happened)
    assert "training.epochs: 20 there, 21 here" in refused["error"]

    # the same file without a cap finishes it, on other resources
    done, happened = run(*search, "resources.cpus_per_worker=0.5")
    assert (done["exit_code"], done["status"]) == (0, "finished")
    assert list(check_each_trial_ended_once(happened).values()) == ["finished"] * 4
    assert len(select(happened, "epoch")) == 4 * 20
    check_no_epoch_was_trained_again(happened)
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", "capped", fold(happened))


def begun(record: StudyRecord) -> list[str]:
    """The trials that a gang has taken up."""
    return [name for name, trial in record.trials.items() if trial.status != "planned"]


def statuses(storage: Path) -> dict[str, str]:
    """MLflow's runs: that of the study is ""."""
    runs = Target(f"sqlite:///{storage / 'mlflow.db'}", "capped").runs
    return {name: run.info.status for name, run in runs.items()}

"""One study under one cap after another: each drains it, and a larger one goes on."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.record import StudyRecord, fold
from tests.contract.mlflow_setup import Target
from tests.ray.kept_gang.kept import Kept
from tests.studies import (
    check_each_trial_ended_once,
    check_no_epoch_was_trained_again,
    events,
    select,
    verb,
)
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = """
name: capped
data: {source: digits, limit: 400}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
training: {epochs: 8, batch_size: 10}
resources: {concurrent_trials: 1}
search:
  trials: 2
  seeds: 2
  confirm: 0
  scheduler: {kind: none}
  space: {training.learning_rate: {choice: [0.001, 0.002, 0.003]}}
"""


def test_a_study_goes_on_from_cap_to_cap(tmp_path: Path, kept: Kept) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    one = Capped(tmp_path)
    one.run_out_of_time_while_gangs_are_opened(kept)
    one.run_out_of_training_in_the_first_trial(kept)
    one.run_out_of_trials(kept)
    one.finish_without_caps(kept)


@dataclass(frozen=True)
class Capped:
    """The study, under one cap after another."""

    folder: Path

    @property
    def storage(self) -> Path:
        return self.folder / "studies"

    def run(self, verb: Any, *words: str) -> tuple[Any, list[dict[str, Any]]]:
        """What a verb printed, and the journal after it."""
        printed = verb(self.folder, *words, "--storage", "studies", check=False)
        return printed, events(self.storage, "capped")

    def run_out_of_time_while_gangs_are_opened(self, kept: Kept) -> None:
        """The same command again says so at once."""
        capped = ("search", "small.yaml", "--set", "budget.wall_clock_hours=1e-3")
        ended, happened = self.run(kept.study_of_its_own_gangs, *capped)
        assert ended["exit_code"] == 7
        assert happened[-1]["kind"] == "study_stopped"
        assert happened[-1]["why"].startswith("budget.wall_clock_hours is spent: ")
        assert happened[-1]["budget"]["cap"] == "wall_clock_hours"
        assert "`orchestrator resume capped --storage" in ended["error"]
        assert "--set budget.wall_clock_hours=" in ended["error"]
        began = time.monotonic()
        again, unchanged = self.run(verb, *capped, "--address", kept.address)
        assert (again["exit_code"], unchanged) == (7, happened)
        assert time.monotonic() - began < 60  # 2 s on a quiet machine: Ray was not started

    def run_out_of_training_in_the_first_trial(self, kept: Kept) -> None:
        """It keeps its checkpoint."""
        ended, happened = self.run(
            kept.study, "search", "small.yaml", "--set", "budget.training_hours=1e-5"
        )
        assert ended["exit_code"] == 7
        assert happened[-1]["budget"]["cap"] == "training_hours"
        record = fold(happened)
        assert record.status == "stopped"
        assert any(trial.checkpoints for trial in record.trials.values())
        assert not any(trial.over for trial in record.trials.values())
        assert statuses(self.storage) == {"": "KILLED"} | dict.fromkeys(begun(record), "KILLED")
        status, _ = self.run(verb, "status", "capped")
        assert status["budget"]["training_hours"]["spent"] >= 1e-5
        assert status["budget"]["training_hours"]["cap"] == 1e-5
        assert status["budget"]["wall_clock_hours"]["cap"] is None

    def run_out_of_trials(self, kept: Kept) -> None:
        """What was started runs out, and the last place is the second baseline's."""
        ended, happened = self.run(kept.study, "resume", "capped", "--set", "budget={trials: 3}")
        assert ended["exit_code"] == 7
        record = fold(happened)
        ended_as = [(trial.stage, trial.status) for trial in record.trials.values()]
        assert ended_as == [(stage, "finished") for stage in ("baseline", "search", "baseline")]
        assert happened[-1]["budget"] == {"cap": "trials", "spent": 3, "limit": 3}
        assert statuses(self.storage) == {"": "KILLED"} | dict.fromkeys(begun(record), "FINISHED")

    def finish_without_caps(self, kept: Kept) -> None:
        """On other resources; what the study is cannot be changed."""
        before = events(self.storage, "capped")
        refused, unchanged = self.run(verb, "resume", "capped", "--set", "training.epochs=9")
        assert (refused["exit_code"], unchanged) == (2, before)
        assert "training.epochs: 8 there, 9 here" in refused["error"]
        done, happened = self.run(
            kept.study, "search", "small.yaml", "--set", "resources.cpus_per_worker=0.5"
        )
        assert (done["exit_code"], done["status"]) == (0, "finished")
        assert list(check_each_trial_ended_once(happened).values()) == ["finished"] * 4
        assert len(select(happened, "epoch")) == 4 * 8
        check_no_epoch_was_trained_again(happened)
        check_mlflow(f"sqlite:///{self.storage / 'mlflow.db'}", "capped", fold(happened))


def begun(record: StudyRecord) -> list[str]:
    """The trials that a gang has taken up."""
    return [name for name, trial in record.trials.items() if trial.status != "planned"]


def statuses(storage: Path) -> dict[str, str]:
    """MLflow's runs: that of the study is ""."""
    runs = Target(f"sqlite:///{storage / 'mlflow.db'}", "capped").runs
    return {name: run.info.status for name, run in runs.items()}

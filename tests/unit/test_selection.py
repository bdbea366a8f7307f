"""Arms side by side: paired seeds, partial arms, controls, the best."""

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.study.agenda import Agenda
from orchestrator.study.selection import ArmRow, best_arm, leaderboard, leaders
from orchestrator.study.trial import plan_trial
from orchestrator.study.view import Stage
from tests.unit.study_setup import DIGESTS, Epoch, Record, Trial, carry_out, experiment

STUDY = experiment(
    "training.epochs=3",
    "search.space.pathway.auxiliary={choice: [none, audio, shape, shuffled]}",
    "search.space.pathway.scale.init={uniform: [0.0, 1.0]}",
)


class Study:
    """A record and the rows that follow from it."""

    def __init__(self) -> None:
        self.record = Record()

    def run(
        self,
        stage: Stage,
        auxiliary: Any,
        *scores: float,
        seed: int = 0,
        status: str = "finished",
        more: Mapping[str, Any] | None = None,
    ) -> Trial:
        values = {"pathway.auxiliary": auxiliary, **(more or {})}
        plan = plan_trial(STUDY, values, lambda own: DIGESTS, stage=stage, seed=seed)
        trial = self.record.add(plan)
        trial.train(*scores, status=status)
        return trial

    def rows(self) -> list[ArmRow]:
        return leaderboard(self.record, STUDY)

    def row(self, auxiliary: str) -> ArmRow:
        return next(row for row in self.rows() if row.auxiliary == auxiliary)


@pytest.fixture
def study() -> Study:
    made = Study()
    for seed, last in enumerate((0.50, 0.60, 0.55)):
        made.run("baseline", None, 0.3, 0.4, last, seed=seed)
    return made


def test_only_paired_seeds_are_compared(study: Study) -> None:
    study.run("search", "audio", 0.3, 0.4, 0.70)
    study.run("confirm", "audio", 0.3, 0.4, 0.70, seed=1)
    study.run("confirm", "audio", 0.3, 0.4, 0.90, seed=7)
    row = study.row("audio")
    assert row.deltas == pytest.approx({0: 0.2, 1: 0.1})
    assert row.delta == pytest.approx(0.15)
    assert (row.n, row.n_paired, row.seeds) == (3, 2, (0, 1, 7))
    assert row.mean == pytest.approx(0.7667, abs=1e-4)
    assert row.std == pytest.approx(0.1155, abs=1e-4)
    assert row.stages == ("search", "confirm")
    assert row.kind == "pathway"


def test_the_baseline_is_a_row_without_delta(study: Study) -> None:
    row = study.row("none")
    assert (row.kind, row.label, row.n, row.delta) == ("baseline", "none (baseline)", 3, None)
    assert row.mean == pytest.approx(0.55)


def test_full_arms_come_before_partial_ones_and_those_before_empty_ones(study: Study) -> None:
    study.run("search", "audio", 0.9, 0.9, status="stopped")
    study.run("search", "shape", 0.95, status="stopped")
    study.run("search", "shuffled", status="failed")
    study.run("search", ["audio", "shape"], 0.1, 0.1, 0.2)
    assert [row.auxiliary for row in study.rows()] == [
        "none", "audio+shape", "audio", "shape", "shuffled",
    ]  # fmt: skip
    assert [row.partial for row in study.rows()] == [False, False, True, True, True]
    assert study.row("shuffled").mean is None


def test_a_partial_arm_is_compared_at_the_same_epoch(study: Study) -> None:
    study.run("search", "audio", 0.3, 0.45, status="stopped")
    row = study.row("audio")
    assert (row.epochs, row.full_epochs) == (2, 3)
    assert row.deltas == pytest.approx({0: 0.05})


def test_partial_and_failed_seeds_do_not_enter_a_full_mean(study: Study) -> None:
    study.run("search", "audio", 0.3, 0.4, 0.7)
    study.run("confirm", "audio", 0.1, seed=1, status="running")
    study.run("confirm", "audio", 0.1, 0.1, 0.1, seed=2, status="failed")
    row = study.row("audio")
    assert (row.metrics, row.partial) == ({0: 0.7}, False)
    assert set(row.trials) == {0, 1, 2}


def test_an_arm_with_its_own_number_of_epochs_is_compared_at_the_end(study: Study) -> None:
    study.run("search", "audio", 0.6, more={"training.epochs": 1})
    row = study.row("audio")
    assert (row.partial, row.full_epochs) == (False, 1)
    assert row.deltas == pytest.approx({0: 0.1})


def test_numbers_that_are_missing_or_not_finite_do_not_count(study: Study) -> None:
    study.run("search", "audio", 0.3, 0.4, float("nan"))
    trial = study.run("search", "shape", 0.3, 0.4, 0.5)
    trial.epochs.append(Epoch(4, {"val/loss": 1.0}))
    assert study.row("audio").mean is None
    assert study.row("shape").mean is None
    assert best_arm(study.record, STUDY) is None


def test_a_control_knows_its_arm(study: Study) -> None:
    scale = {"pathway.scale.init": 0.5}
    study.run("search", "audio", 0.3, 0.4, 0.7)
    study.run("search", "audio", 0.3, 0.4, 0.6, more=scale)
    study.run("control", "random~audio", 0.3, 0.4, 0.5, more=scale)
    row = study.row("random~audio")
    audio = [row for row in study.rows() if row.auxiliary == "audio"]
    assert row.kind == "control"
    assert row.control_of == next(one.arm for one in audio if one.mean == 0.6)
    study.run("search", "shuffled", 0.3, 0.4, 0.9)
    assert study.row("shuffled").kind == "control"
    assert study.row("shuffled").control_of is None


def test_the_best_is_a_pathway_arm_and_a_confirmed_one_if_there_is_one(study: Study) -> None:
    assert best_arm(study.record, STUDY) is None
    study.run("search", "shuffled", 0.3, 0.4, 0.99)
    study.run("search", None, 0.3, 0.4, 0.98, more={"training.learning_rate": 0.01})
    study.run("search", "audio", 0.3, 0.4, 0.7)
    study.run("search", "shape", 0.3, 0.4, 0.8)
    assert study.rows()[1].kind == "plain"
    best = best_arm(study.record, STUDY)
    assert best is not None
    assert best.auxiliary == "shape"
    study.run("confirm", "audio", 0.3, 0.4, 0.6, seed=1)
    best = best_arm(study.record, STUDY)
    assert best is not None
    assert best.auxiliary == "audio"


def test_leaders_are_trained_to_the_end_before_they_are_good(study: Study) -> None:
    study.run("search", "audio", 0.3, 0.9, status="stopped")
    study.run("search", "shape", 0.99, status="stopped")
    study.run("search", "shuffled", 0.9, 0.9, 0.9)
    study.run("search", ["audio", "shape"], 0.1, 0.1, 0.2)
    study.run("search", "audio", 0.9, status="failed", more={"pathway.scale.init": 0.5})
    two = experiment("training.epochs=3", "search.confirm=2")
    assert [trial.auxiliary for trial in leaders(study.record, STUDY)] == ["audio+shape"]
    assert [trial.auxiliary for trial in leaders(study.record, two)] == ["audio+shape", "audio"]


def test_what_confirmation_shows_does_not_change_who_is_confirmed(study: Study) -> None:
    study.run("search", "audio", 0.3, 0.4, 0.7)
    study.run("search", "shape", 0.3, 0.4, 0.6)
    before = [trial.trial for trial in leaders(study.record, STUDY)]
    study.run("confirm", "audio", 0.1, 0.1, 0.1, seed=1)
    assert [trial.trial for trial in leaders(study.record, STUDY)] == before


def test_less_is_better_where_the_file_says_so() -> None:
    study = experiment(
        "search.metric=val/accuracy",
        "search.mode=min",
        "search.space.pathway.auxiliary={choice: [audio, shape]}",
        "training.epochs=2",
        "search.trials=2",
    )
    record = Record()
    carry_out(Agenda(study, DIGESTS), record, {"audio": (0.4, 0.3), "shape": (0.4, 0.2)})
    best = best_arm(record, study)
    assert best is not None
    assert best.auxiliary == "shape"
    assert leaderboard(record, study)[0].arm == best.arm

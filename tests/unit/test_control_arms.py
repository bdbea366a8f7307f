"""What a confirmed arm is compared with: which trials that makes, and whose controls they are."""

from typing import Any

import pytest

from orchestrator.errors import RequestError
from orchestrator.study.agenda import Agenda
from orchestrator.study.selection import leaderboard
from tests.unit.study_setup import DIGESTS, Epoch, Record, experiment, start_all

ALL = "search.controls=[random, permuted, zero, reversed, plain, longer, rate]"
SEARCH = (
    "search.trials=1",
    "search.seeds=2",
    "search.scheduler={kind: none}",
    "training.epochs=10",
    "search.space={training.weight_decay: {choice: [0.1]}}",
)


def confirmed(*more: str) -> tuple[Any, Record]:
    """A study whose one search arm has been confirmed beside its controls; nothing is left."""
    study = experiment(*SEARCH, ALL, *more)
    agenda, record = Agenda(study, DIGESTS), Record()
    for _ in range(4):
        for plan in start_all(agenda, record):
            trial = record.trials[plan.trial]
            trial.train(*[0.5] * 10)
            scales = (
                {"lambda/0.qkv": -0.25, "lambda/0.fc1": 0.75} if plan.auxiliary != "none" else {}
            )
            trial.epochs = [Epoch(one.epoch, one.metrics, scales) for one in trial.epochs]
    return study, record


def settings(record: Record) -> list[dict[str, Any]]:
    """What distinguishes each control arm, in order."""
    trials = [trial for trial in record.trials.values() if trial.stage == "control"]
    assert sorted(trial.seed for trial in trials) == [0] * (len(trials) // 2) + [1] * (
        len(trials) // 2
    )
    return [dict(trial.values) for trial in trials[::2]]


def test_each_control_differs_from_its_arm_in_what_it_is_named_for() -> None:
    study, record = confirmed()
    arm = {"training.weight_decay": 0.1}
    off = {"pathway.auxiliary": None}
    assert settings(record) == [
        {**arm, "pathway.auxiliary": "random~audio"},
        {**arm, "pathway.auxiliary": "permuted~audio"},
        {
            **arm,
            "pathway.scale.init": 0.0,
            "pathway.scale.learned": False,
            "pathway.scale.merge_every": None,
            "pathway.trainable": False,
        },
        {**arm, "pathway.mapping": "reversed"},
        {**arm, **off},
        {**arm, **off, "training.epochs": 14},
        {**arm, **off, "training.learning_rate": 0.0015},
    ]
    rows = {row.control_kind: row for row in leaderboard(record, study) if row.control_of}
    kinds = ["longer", "permuted", "plain", "random", "rate", "reversed", "zero"]
    assert sorted(map(str, rows)) == kinds
    (best,) = {row.control_of for row in rows.values()}
    (leader,) = (trial for trial in record.trials.values() if trial.stage == "search")
    assert best == leader.arm
    assert {row.kind for row in rows.values()} == {"control"}
    labels = {str(kind): row.label for kind, row in rows.items()}
    assert labels["longer"] == "none · weight_decay 0.1 · epochs 14"
    assert labels["rate"] == "none · weight_decay 0.1 · learning_rate 0.0015"
    assert labels["zero"].startswith("audio · λ fixed 0 · frozen")
    assert len(set(labels.values())) == len(labels)


@pytest.mark.parametrize(
    ("more", "kind", "wanted"),
    [
        (["pathway.trainable=false"], "longer", {"training.epochs": 11}),
        (["pathway.mapping=reversed"], "reversed", {"pathway.mapping": "identity"}),
        (["pathway.mapping=[0, 0, 1, 3]"], "reversed", {"pathway.mapping": [3, 1, 0, 0]}),
        (["pathway.mapping=2"], "reversed", {"pathway.mapping": "reversed"}),
    ],
)
def test_a_control_follows_from_its_arm(more: list[str], kind: str, wanted: dict[str, Any]) -> None:
    study, record = confirmed(*more)
    (row,) = (row for row in leaderboard(record, study) if row.control_kind == kind)
    values = record.trials[row.trials[0]].values
    assert wanted.items() <= values.items()


def test_what_an_arm_cannot_have_is_left_out() -> None:
    study, record = confirmed("pathway.mapping=stretched")
    kinds = {row.control_kind for row in leaderboard(record, study) if row.control_of}
    assert "reversed" not in kinds
    assert len(kinds) == 6


def test_without_controls_there_are_none() -> None:
    _, record = confirmed("search.controls=[]")
    assert settings(record) == []
    with pytest.raises(RequestError, match=r"search.controls: has one twice: zero, zero"):
        experiment("search.controls=[zero, zero]")


def test_a_section_that_is_searched_whole_stays_the_arms_own() -> None:
    searched = "search.space={pathway: {grid: [{auxiliary: audio}, {auxiliary: shape}]}}"
    study, record = confirmed("pathway.auxiliary=null", searched, "search.trials=2")
    stages = [trial.stage for trial in record.trials.values()]
    assert {stage: stages.count(stage) for stage in set(stages)} == {
        "baseline": 2, "search": 2, "confirm": 1, "control": 2 * 6,
    }  # fmt: skip
    searched_for = [t.values for t in record.trials.values() if t.stage == "search"]
    assert sorted(values["pathway"]["auxiliary"] for values in searched_for) == ["audio", "shape"]
    assert sum(row.kind == "pathway" for row in leaderboard(record, study)) == 2

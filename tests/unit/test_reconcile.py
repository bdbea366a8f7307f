"""What MLflow lacks, without an MLflow."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.tracking.reconcile import (
    Change,
    Context,
    RunState,
    batches,
    study_change,
    study_id,
    trial_change,
)
from orchestrator.tracking.record import StudyRecord, fold
from orchestrator.tracking.runs import compare_url, without_secret

Json = dict[str, Any]
CONTEXT = Context("s", "s-1")
NEW = RunState("run", "RUNNING", {}, frozenset())


def events(*more: Json) -> list[Json]:
    plan = {"arm": "a", "label": "l", "stage": "search", "auxiliary": "random~x", "coverage": "all"}
    values = {"pathway.auxiliary": ["a", "b"], "training.epochs": 2}
    first: list[Json] = [
        {"kind": "takeover", "segments": [], "manifests": []},
        {"kind": "planned", "trial": "t", "seed": 3, "values": values, **plan},
        {"kind": "started", "trial": "t", "gang": "g", "attempt": 1},
        *more,
    ]
    return [{"time": 100.0 + number, **event} for number, event in enumerate(first)]


def epoch(number: int) -> Json:
    metrics = {"val/loss": 1.0 / number, "bad": float("inf")}
    parts: Json = {"metrics": metrics, "scales": {"lambda/random~x/0.qkv": 0.5}}
    return {"kind": "epoch", "trial": "t", "epoch": number, "seconds": {"train": 1}, **parts}


FINISHED = {"kind": "finished", "trial": "t"}


def change_of(record: StudyRecord, have: RunState | None, context: Context = CONTEXT) -> Change:
    change = trial_change(record, record.trials["t"], context, have)
    assert change is not None
    return change


def test_a_new_run_gets_everything_and_then_nothing() -> None:
    record = fold(events(epoch(1), epoch(2), FINISHED))
    change = change_of(record, None)
    assert (change.name, change.start_ms, change.end_ms) == ("l · seed 3", 102000, 105000)
    assert change.params == {"pathway.auxiliary": "[a, b]", "training.epochs": "2"}
    assert [(point.key, point.step, point.time_ms) for point in change.points] == [
        ("val/loss", 1, 103000),
        ("lambda/random-x/0.qkv", 1, 103000),
        ("time/train", 1, 103000),
        ("val/loss", 2, 104000),
        ("lambda/random-x/0.qkv", 2, 104000),
        ("time/train", 2, 104000),
    ]
    assert (change.tags["trial_id"], change.tags["seed"]) == ("t", "3")
    assert (change.marks, change.status) == ({"rung": "2"}, "FINISHED")
    assert "why" not in change.tags
    have = change.applied_to(NEW)
    assert change_of(record, have).empty
    assert [
        point.step for point in change_of(record, replace(have, tags={"rung": "1"})).points
    ] == [
        2,
        2,
        2,
    ]


def test_a_trial_that_has_not_begun_has_no_run() -> None:
    record = fold(events()[:2])
    assert trial_change(record, record.trials["t"], CONTEXT, None) is None


def test_the_test_split_is_told_once() -> None:
    record = fold(events(epoch(2), FINISHED))
    have = change_of(record, NEW).applied_to(NEW)
    record.apply({"kind": "tested", "trial": "t", "time": 200.0, "metrics": {"test/accuracy": 0.5}})
    change = change_of(record, have)
    assert [(point.key, point.step) for point in change.points] == [("test/accuracy", 2)]
    assert change.marks == {"tested": "yes"}
    assert change_of(record, change.applied_to(have)).empty


STOPPED = {"kind": "study_stopped", "why": "asked to"}


@pytest.mark.parametrize(
    ("more", "closed", "have", "status"),
    [
        ([], False, "RUNNING", None),
        ([], True, "RUNNING", "KILLED"),
        ([], True, "KILLED", None),
        ([], False, "KILLED", "RUNNING"),
        ([], False, "FINISHED", None),
        ([], True, "FAILED", None),
        ([STOPPED], False, "RUNNING", "KILLED"),
        ([STOPPED], False, "FINISHED", None),
        ([FINISHED], False, "RUNNING", "FINISHED"),
        ([FINISHED], True, "KILLED", "FINISHED"),
        ([{"kind": "stopped", "trial": "t", "why": "w"}], False, "RUNNING", "FINISHED"),
        ([{"kind": "failed", "trial": "t", "error": "e"}], False, "KILLED", "FAILED"),
        ([{"kind": "failed", "trial": "t", "error": "e"}, STOPPED], True, "FAILED", None),
    ],
)
def test_states_only_grow_stronger(
    more: list[Json], closed: bool, have: str, status: str | None
) -> None:
    record = fold(events(*more))
    known = RunState("run", have, {}, frozenset())
    assert change_of(record, known, replace(CONTEXT, closed=closed)).status == status


@pytest.mark.parametrize(
    ("more", "closed", "status"),
    [
        ([], False, None),
        ([], True, "KILLED"),
        ([STOPPED], False, "KILLED"),
        ([FINISHED, {"kind": "study_finished", "verdict": "v"}], True, "FINISHED"),
        (
            [
                {"kind": "failed", "trial": "t", "error": "e"},
                {"kind": "study_finished", "verdict": ""},
            ],
            False,
            "FAILED",
        ),
    ],
)
def test_the_parent_ends_as_the_study_does(
    more: list[Json], closed: bool, status: str | None
) -> None:
    record = fold(events(*more))
    change = study_change(record, replace(CONTEXT, closed=closed), NEW)
    assert change.status == status
    assert study_change(record, replace(CONTEXT, closed=closed), change.applied_to(NEW)).empty


def test_auxiliaries_are_told_once_on_the_parent() -> None:
    ready = {"kind": "auxiliary_ready", "name": "x", "sha256": "f" * 64, "metrics": {"loss": 0.5}}
    change = study_change(fold(events(ready)), CONTEXT, NEW)
    assert [(point.key, point.value) for point in change.points] == [("auxiliary/x/loss", 0.5)]
    assert change.marks == {"auxiliaries": "x ffffffffffff"}


def test_a_study_is_told_from_a_later_one_of_its_name() -> None:
    first, second = fold(events()), fold([{**event, "time": 9.0} for event in events()])
    assert study_id("s", first) != study_id("s", second)
    assert study_id("s", first) == study_id("s", fold(events(epoch(1))))


def test_points_come_in_order_and_in_parts() -> None:
    points = change_of(fold(events(epoch(1), epoch(2))), None).points
    assert batches(points, 4) == [points[:4], points[4:]]
    assert batches([], 4) == [[]]


def test_addresses_for_people_carry_no_secret() -> None:
    url = compare_url("https://user:canary@host:5000/", "7", "s-1")
    assert url is not None
    assert url.startswith("https://host:5000/#/experiments/7/runs?searchFilter=tags.study_id%20%3D")
    assert "orderByKey=metrics.%60val%2Faccuracy%60&orderByAsc=false" in url
    assert without_secret("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert compare_url("sqlite:////a/b.db", "7", "s-1") is None

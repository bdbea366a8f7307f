"""Events and what they fold into."""

import json
import math
from typing import Any

import numpy as np
import pytest

from orchestrator.tracking.events import FIELDS, from_line, to_line
from orchestrator.tracking.record import StudyRecord, fold

Json = dict[str, Any]


def planned(trial: str, seed: int = 0) -> Json:
    plan = {"arm": "a", "label": "none (baseline)", "stage": "search", "auxiliary": "none"}
    return {
        "kind": "planned",
        "trial": trial,
        "seed": seed,
        "values": {"x": 1},
        "coverage": "all",
    } | plan


def epoch(trial: str, number: int, loss: float = 1.0) -> Json:
    parts = {
        "metrics": {"val/loss": loss},
        "scales": {"lambda/a/0.qkv": 0.1},
        "seconds": {"train": 2},
    }
    return {"kind": "epoch", "trial": trial, "epoch": number, "epochs": 3, **parts}


def timed(events: list[Json]) -> list[Json]:
    return [{"time": 100.0 + number, **event} for number, event in enumerate(events)]


STARTED = {"kind": "started", "trial": "t", "gang": "g", "attempt": 1}


def test_a_trial_is_followed_to_its_end() -> None:
    record = fold(
        timed(
            [
                {"kind": "takeover", "segments": [], "manifests": []},
                {"kind": "study_started", "experiment_sha256": "e", "experiment": {"name": "s"}},
                {"kind": "auxiliary_ready", "name": "audio", "sha256": "b", "seconds": 1.5},
                {"kind": "gang_opened", "gang": "g", "attempt": 1, "workers": [{"pid": 3}]},
                planned("t"),
                STARTED,
                epoch("t", 1),
                {"kind": "checkpoint", "trial": "t", "epoch": 1, "key": "k1"},
                epoch("t", 2, math.nan),
                {"kind": "finished", "trial": "t"},
                {"kind": "tested", "trial": "t", "metrics": {"test/accuracy": 0.5}},
                {"kind": "exported", "trial": "t", "key": "exports/t", "proof": {"difference": 0}},
                {"kind": "study_finished", "verdict": "none"},
            ]
        )
    )
    trial = record.trials["t"]
    assert (trial.status, trial.over, trial.attempts, trial.gang) == ("finished", True, 1, "g")
    assert [(entry.epoch, entry.time) for entry in trial.epochs] == [(1, 106.0), (2, 108.0)]
    assert trial.epochs[0].metrics == {"val/loss": 1.0}
    assert trial.epochs[0].scales == {"lambda/a/0.qkv": 0.1}
    assert trial.epochs[0].seconds == {"train": 2.0}
    assert (trial.planned, trial.started, trial.ended) == (104.0, 105.0, 109.0)
    assert (trial.checkpoints, trial.epochs_planned) == ({1: "k1"}, 3)
    assert (trial.tested, trial.exported) == ({"test/accuracy": 0.5}, "exports/t")
    assert (record.status, record.verdict, record.ended) == ("finished", "none", 112.0)
    assert (record.started, record.takeovers, record.experiment) == (100.0, 1, {"name": "s"})
    assert record.auxiliaries["audio"].sha256 == "b"
    assert record.gangs["g"].open


def test_a_restarted_trial_shows_once() -> None:
    again = {**STARTED, "attempt": 2}
    end = {"kind": "stopped", "trial": "t", "why": "halving"}
    late = {"kind": "failed", "trial": "t", "error": "too late"}
    first = [planned("t"), STARTED, epoch("t", 1, 0.5), again]
    second = [epoch("t", 1, 0.9), planned("t", 7), epoch("t", 2), end, late, epoch("t", 3), again]
    record = fold(first + second)
    trial = record.trials["t"]
    assert [entry.epoch for entry in trial.epochs] == [1, 2]
    assert trial.epochs[0].metrics == {"val/loss": 0.5}
    assert (trial.status, trial.why, trial.error, trial.seed) == ("stopped", "halving", None, 0)
    assert trial.attempts == 2


@pytest.mark.parametrize(
    ("event", "news"),
    [
        (planned("t"), False),
        (planned("u"), True),
        (STARTED, True),
        (epoch("t", 1), False),
        (epoch("t", 2), True),
        ({"kind": "checkpoint", "trial": "t", "epoch": 1, "key": "k1"}, False),
        ({"kind": "checkpoint", "trial": "t", "epoch": 1, "key": "k2"}, True),
        ({"kind": "finished", "trial": "t"}, True),
        ({"kind": "finished", "trial": "over"}, False),
        ({**STARTED, "trial": "over"}, False),
        (epoch("over", 4), False),
        ({"kind": "tested", "trial": "over", "metrics": {}}, True),
        ({"kind": "of a later release", "trial": "t"}, True),
    ],
)
def test_news_is_told_from_what_is_known(event: Json, news: bool) -> None:
    known = {"kind": "checkpoint", "trial": "t", "epoch": 1, "key": "k1"}
    failed = {"kind": "failed", "trial": "over", "error": "e", "attempts": 3}
    record = fold([planned("t"), epoch("t", 1), known, planned("over"), failed])
    assert record.is_news(event) is news
    assert record.trials["over"].attempts == 3


def test_a_stopped_study_runs_again() -> None:
    stop = {"kind": "study_stopped", "why": "asked to"}
    record = fold([planned("t"), STARTED, stop])
    assert (record.status, record.why) == ("stopped", "asked to")
    record.apply({"kind": "takeover", "segments": [], "manifests": []})
    assert record.status == "stopped"
    record.apply({**STARTED, "attempt": 2})
    assert (record.status, record.why, record.ended) == ("running", None, None)


def test_gangs_are_renewed_and_end_with_their_driver() -> None:
    opened = {"kind": "gang_opened", "gang": "g", "attempt": 1, "seconds": 4}
    lost = {"kind": "gang_lost", "gang": "g", "attempt": 1, "why": "rank 1 died"}
    record = fold([opened, lost])
    assert not record.gangs["g"].open
    record.apply({**opened, "attempt": 2})
    assert (record.gangs["g"].attempt, record.gangs["g"].open) == (2, True)
    assert record.gangs["g"].lost == [(1, "rank 1 died")]
    record.apply({"kind": "takeover", "segments": [], "manifests": []})
    assert not record.gangs["g"].open


def test_unknown_trials_and_kinds_are_passed_over() -> None:
    record = fold([epoch("nobody", 1), {"kind": "new", "trial": "x"}, {"kind": "new"}])
    assert record == StudyRecord(started=0.0)


def test_lines_are_strict_json_and_say_the_same() -> None:
    values = {"lrs": (1, 2.5), "deep": {"n": np.int64(3), "f": np.float32(0.5)}, "none": None}
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float64(0.1)}
    line = to_line({"kind": "other", "values": values, "metrics": metrics}, now=7.0)
    assert "\n" not in line
    event = from_line(line)
    assert event["time"] == 7.0
    assert event["values"] == {"lrs": [1, 2.5], "deep": {"n": 3, "f": 0.5}, "none": None}
    assert event["metrics"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.1}
    assert json.loads(line, parse_constant=pytest.fail) == event
    trial = fold([planned("t"), {**epoch("t", 1), "metrics": event["metrics"]}]).trials["t"]
    assert math.isnan(trial.epochs[0].metrics["a"])
    assert trial.epochs[0].metrics["c"] == -math.inf


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({}, "has a kind"),
        ({"kind": 3}, "has a kind"),
        ({"kind": "epoch", "trial": "t"}, "says epoch, metrics"),
        ({"kind": "x", "value": object()}, "JSON values"),
    ],
)
def test_what_is_no_event_is_refused(event: Json, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_line(event, now=0.0)


def test_every_kind_that_a_record_understands_has_fields() -> None:
    assert set(FIELDS) >= {"planned", "epoch", "finished", "study_finished", "takeover"}

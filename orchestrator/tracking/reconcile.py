"""What MLflow lacks: the difference between a study's record and the runs that are there. Pure.

One parent run per study, one child per trial. Two tags say how far a run is, and are written in
the same request as the last of what they speak of, after it: `rung`, the newest epoch whose
metrics are there, and `tested`. So a request whose answer was lost can be made again.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.study.view import value_text
from orchestrator.tracking.record import StudyRecord, TrialRecord

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

STUDY_STAGE = "study"
"""The tag `stage` of a parent run; a child has its trial's."""

_STRENGTH: Mapping[str, int] = {"FINISHED": 2, "FAILED": 2, "KILLED": 1}
_MAX_TAG_CHARACTERS = 5000
_MAX_PARAM_CHARACTERS = 6000
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]+")


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class RunState:
    """What MLflow has of a run."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    params: frozenset[str]


@dataclass(frozen=True)
class Change:
    """What a run lacks. Marks are tags to be written after the points."""

    name: str
    start_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    status: RunStatus | None = None
    end_ms: int | None = None

    @property
    def empty(self) -> bool:
        """Is there nothing to send?"""
        return not (self.tags or self.marks or self.params or self.points or self.status)

    def applied_to(self, have: RunState) -> RunState:
        """What MLflow has once this was sent."""
        return replace(
            have,
            status=self.status or have.status,
            tags={**have.tags, **self.tags, **self.marks},
            params=have.params | self.params.keys(),
        )


@dataclass(frozen=True)
class Context:
    """What a record does not say of itself."""

    study: str
    study_id: str
    closed: bool = False
    """The driver is ending, whether the study has or not."""
    artifacts: str = ""
    """Which files lie beside the parent run."""


def study_id(study: str, record: StudyRecord) -> str:
    """Tells this study from another one of its name: two of them never share a run."""
    return f"{study}-{_ms(record.started):x}"


def study_change(record: StudyRecord, context: Context, have: RunState | None) -> Change:
    """What the parent run lacks."""
    status: RunStatus = "RUNNING"
    if record.status == "finished":
        trials = record.trials.values()
        failed = bool(trials) and all(trial.status == "failed" for trial in trials)
        status = "FAILED" if failed else "FINISHED"
    elif record.status == "stopped" or context.closed:
        status = "KILLED"
    known = have.tags.get("auxiliaries", "") if have else ""
    ready = ", ".join(f"{one.name} {one.sha256[:12]}" for one in record.auxiliaries.values())
    tags = {
        "study": context.study,
        "study_id": context.study_id,
        "stage": STUDY_STAGE,
        "experiment_sha256": record.experiment_sha256,
        "verdict": record.verdict or "",
        "why": record.why or "",
        **_weights_tags(record),
    }
    change = Change(
        name=context.study,
        start_ms=_ms(record.started),
        tags=_news(tags, have),
        marks=_news({"auxiliaries": ready, "artifacts": context.artifacts}, have),
        points=[] if known == ready else _auxiliary_points(record),
    )
    return _with_status(change, have, status, record.ended)


def _weights_tags(record: StudyRecord) -> dict[str, str]:
    """Where each weight comes from: a tag of JSON for each, and what can be searched for."""
    said = {one.name: one.provenance for one in record.auxiliaries.values() if one.provenance}
    if not said:
        return {}
    licences = {str(one["licence"]) for one in said.values() if one.get("licence")}
    warned = [f"{name}: {line}" for name, one in said.items() for line in one.get("warnings", ())]
    return {
        **{
            metric_name(f"weights/{name}"): json.dumps(one, sort_keys=True)
            for name, one in said.items()
        },
        "weights_licences": ", ".join(sorted(licences)),
        "weights_warnings": "; ".join(warned),
    }


def trial_change(
    record: StudyRecord, trial: TrialRecord, context: Context, have: RunState | None
) -> Change | None:
    """What a child run lacks; None while the trial has not begun."""
    if trial.status == "planned":
        return None
    sent = int(have.tags.get("rung", "0")) if have else 0
    points = _epoch_points(trial, sent)
    marks = {"rung": str(trial.epochs[-1].epoch)} if trial.epochs else {}
    if trial.tested:
        marks["tested"] = "yes"
        if have is None or "tested" not in have.tags:
            points += _points(trial.tested, "", _ms(trial.ended), int(marks.get("rung", "0")))
    params = {metric_name(path): parameter_text(value) for path, value in trial.values.items()}
    change = Change(
        name=f"{trial.label} · seed {trial.seed}",
        start_ms=_ms(trial.started),
        tags=_news(_trial_tags(record, trial, context), have),
        marks=_news(marks, have),
        params={k: v for k, v in params.items() if have is None or k not in have.params},
        points=points,
    )
    return _with_status(change, have, _trial_status(record, trial, context), trial.ended)


def _trial_status(record: StudyRecord, trial: TrialRecord, context: Context) -> RunStatus:
    if trial.status == "failed":
        return "FAILED"
    if trial.over:
        return "FINISHED"  # also when it was stopped: the tag `outcome` tells
    return "KILLED" if record.status == "stopped" or context.closed else "RUNNING"


def _trial_tags(record: StudyRecord, trial: TrialRecord, context: Context) -> dict[str, str]:
    status = _trial_status(record, trial, context)
    outcome = trial.status if trial.over else ("interrupted" if status == "KILLED" else "running")
    return {
        "trial_id": trial.trial,
        "study": context.study,
        "study_id": context.study_id,
        "arm": trial.arm,
        "label": trial.label,
        "stage": trial.stage,
        "seed": str(trial.seed),
        "auxiliary": trial.auxiliary,
        "coverage": trial.coverage,
        "outcome": outcome,
        "attempts": str(trial.attempts),
        "gang": trial.gang or "",
        "why": trial.why or "",
        "error": trial.error or "",
        "exported": trial.exported or "",
    }


def _with_status(
    change: Change, have: RunState | None, status: RunStatus, ended: float | None
) -> Change:
    """`change`, with the run's status where that is to change: a weaker one changes nothing.

    An interrupted run becomes a running one when its trial is resumed; an ended one never.
    """
    known = have.status if have else "RUNNING"
    if status == known or _STRENGTH.get(known, 0) == 2 > _STRENGTH.get(status, 0):
        return change
    return replace(change, status=status, end_ms=None if ended is None else _ms(ended))


def _epoch_points(trial: TrialRecord, after: int) -> list[Point]:
    points = []
    for entry in trial.epochs:
        if entry.epoch > after:
            at = (_ms(entry.time), entry.epoch)
            points += _points(entry.metrics, "", *at)
            points += _points(entry.scales, "", *at)
            points += _points(entry.seconds, "time/", *at)
    return points


def _auxiliary_points(record: StudyRecord) -> list[Point]:
    points = []
    for one in record.auxiliaries.values():
        at = (_ms(record.started), one.epoch or 0)
        points += _points(one.metrics, f"auxiliary/{one.name}/", *at)
    for name, entries in record.pretraining.items():
        for entry in entries.values():
            points += _points(entry.metrics, f"auxiliary/{name}/", _ms(entry.time), entry.epoch)
    return points


def _points(values: Mapping[str, float], prefix: str, time_ms: int, step: int) -> list[Point]:
    """MLflow has no use for values that are no numbers: they are left out."""
    return [
        Point(metric_name(prefix + key), value, time_ms, step)
        for key, value in values.items()
        if math.isfinite(value)
    ]


def _news(wanted: Mapping[str, str], have: RunState | None) -> dict[str, str]:
    """The tags that are not there yet; an empty one only to take back what was said before."""
    known = have.tags if have else {}
    cut = {key: value[:_MAX_TAG_CHARACTERS] for key, value in wanted.items()}
    return {key: value for key, value in cut.items() if known.get(key, "") != value}


def batches(points: Iterable[Point], size: int) -> list[list[Point]]:
    """`points` in order, in lists of at most `size`; always at least one list."""
    every = list(points)
    return [every[start : start + size] for start in range(0, len(every), size)] or [[]]


def metric_name(key: str) -> str:
    """`key` in the characters that MLflow allows in names, of parameters too."""
    return "/".join(part for part in _NOT_IN_NAMES.sub("-", key).split("/") if part) or "-"


def parameter_text(value: Any) -> str:
    """A searched value as MLflow shows it: as a file has it, a drawn number with all its digits."""
    text = str(value) if isinstance(value, float) else value_text(value)
    return text[:_MAX_PARAM_CHARACTERS]


def _ms(time: float | None) -> int:
    return round((time or 0.0) * 1000)

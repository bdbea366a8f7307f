"""`status STUDY`: how far a study is, from any terminal, running or not."""

import argparse
import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from orchestrator.commands.options import Located, add_study, study_of
from orchestrator.config.experiment import Experiment
from orchestrator.storage.lease import Owner, read_owner
from orchestrator.study.budget import WORDS, amount, spent_in
from orchestrator.study.plan import make_plan
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import StudyRecord, fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage."""
    add_study(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print it."""
    found = study_of(parsed)
    values = status(found)
    if parsed.json:
        print(json.dumps(values, allow_nan=False))
    else:
        _show(values)
    return 0


def status(found: Located) -> dict[str, Any]:
    """How far the study is, as plain values."""
    experiment = found.experiment()
    events = read_events(found.store, found.name)
    record = fold(events)
    owner = read_owner(found.store, found.name)
    return {
        "study": found.name,
        "status": record.status,
        "owner": _owner(owner),
        "trials": dict(Counter(trial.status for trial in record.trials.values())),
        "planned_at_most": make_plan(experiment).trials if record.purpose == "search" else 0,
        "running": _running(record, experiment.search.metric),
        "auxiliaries": sorted(record.auxiliaries),
        "gangs": {
            name: {"attempt": gang.attempt, "lost": [why for _, why in gang.lost]}
            for name, gang in record.gangs.items()
        },
        "budget": _budget(experiment, events),
        "verdict": record.verdict,
        "why": record.why,
    }


def _budget(experiment: Experiment, events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each cap with what was spent of it, up to the newest event."""
    spent = spent_in(events)
    return {
        cap: {"spent": getattr(spent, cap), "cap": getattr(experiment.budget, cap)} for cap in WORDS
    }


def _owner(owner: Owner | None) -> str | None:
    if owner is None or owner.released:
        return None
    return f"pid {owner.pid} on {owner.host}"


def _running(record: StudyRecord, metric: str) -> list[dict[str, Any]]:
    return [
        {
            "trial": trial.trial,
            "label": trial.label,
            "seed": trial.seed,
            "epoch": trial.epochs[-1].epoch if trial.epochs else 0,
            "epochs": trial.epochs_planned,
            metric: trial.epochs[-1].metrics.get(metric) if trial.epochs else None,
        }
        for trial in record.trials.values()
        if trial.status == "running"
    ]


def _spent_text(budget: dict[str, dict[str, Any]]) -> str:
    parts = []
    for cap, words in WORDS.items():
        of = budget[cap]["cap"]
        limit = "" if of is None else f" of {amount(of)}"
        parts.append(f"{amount(budget[cap]['spent'])}{limit} {words}")
    return ", ".join(parts)


def _show(values: dict[str, Any]) -> None:
    out = Console(highlight=False)
    counted = ", ".join(f"{n} {state}" for state, n in sorted(values["trials"].items()))
    owner = values["owner"] or "nobody"
    out.print(f"study [bold]{values['study']}[/] is [bold]{values['status']}[/], owned by {owner}")
    out.print(f"trials  {counted or 'none yet'}; at most {values['planned_at_most']}")
    out.print(f"spent   {_spent_text(values['budget'])}")
    for trial in values["running"]:
        label = escape(f"{trial['label']} · seed {trial['seed']}")
        out.print(f"  {label}: epoch {trial['epoch']} of {trial['epochs'] or '?'}")
    for name, gang in values["gangs"].items():
        for why in gang["lost"]:
            out.print(f"  {name} was lost once: {escape(why)}")
    for word in ("why", "verdict"):
        if values[word]:
            out.print(f"{word}  {escape(values[word])}")

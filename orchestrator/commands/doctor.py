"""`doctor [FILE]`: is everything there that a study needs? Each fault is named with its remedy."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator import environment
from orchestrator.checks import Check
from orchestrator.commands.options import add_address, add_overrides, experiment_of
from orchestrator.conduct.in_job import check_lasting
from orchestrator.conduct.places import DEFAULT_STORAGE, tracking_of
from orchestrator.config.addresses import why_no_tracking
from orchestrator.config.experiment import Experiment
from orchestrator.errors import (
    ClusterError,
    OrchestratorError,
    RequestError,
    StorageError,
    TrackingError,
)

MARKS = {"ok": "[green]✓ ok[/]", "warning": "[yellow]! warning[/]", "failed": "[red]✗ failed[/]"}


@dataclass(frozen=True)
class Area:
    """What was found of one thing that a study stands on."""

    name: str
    exit_code: int
    checks: Sequence[Check]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(check.ok for check in self.checks)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking, --address."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="experiment file to check, or a shipped one's name"
    )
    add_overrides(parser)
    add_address(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the table; the code is that of the first area with a fault."""
    areas = look(parsed)
    code = exit_code(areas)
    if parsed.json:
        print(json.dumps({"ok": code == 0, "exit_code": code, "checks": rows(areas)}))
    else:
        show(areas, Console(highlight=False))
    return code


def look(parsed: argparse.Namespace) -> list[Area]:
    """All checks, area by area. What is named on the command line comes before the file."""
    from orchestrator.ray_backend.probe import probe as probe_ray
    from orchestrator.storage.probe import probe as probe_storage

    experiment, of_file = _file(parsed)
    storage = parsed.storage or (experiment.storage if experiment else DEFAULT_STORAGE)
    tracking = parsed.tracking or (experiment.tracking if experiment else None)
    resources = experiment.resources if experiment else None
    areas = [
        Area("Ray", ClusterError.exit_code, probe_ray(parsed.address, resources)),
        Area("storage", StorageError.exit_code, probe_storage(storage)),
        Area("MLflow", TrackingError.exit_code, _tracking(tracking, storage)),
    ]
    return [*areas, Area("file", RequestError.exit_code, of_file)] if parsed.file else areas


def exit_code(areas: Sequence[Area]) -> int:
    """0, or the code of the first area in which something failed."""
    return next((area.exit_code for area in areas if not area.ok), 0)


def _file(parsed: argparse.Namespace) -> tuple[Experiment | None, list[Check]]:
    """The experiment, where it can be read, and what was found of it."""
    from orchestrator.conduct.preflight import check_inputs

    if parsed.file is None:
        return None, []
    try:
        experiment = experiment_of(parsed, parsed.file)
    except RequestError as error:
        return None, [Check("experiment file", False, str(error), "change what is named there")]
    read = Check("experiment file", True, f"{parsed.file} is the study {experiment.name!r}")
    found = [read, _tried("data and weights", lambda: check_inputs(experiment))]
    if environment.ray_job() is not None:
        found.append(_tried("a job's places", lambda: check_lasting(experiment)))
    return experiment, found


def _tracking(tracking: str | None, storage: str) -> list[Check]:
    from orchestrator.tracking.probe import probe

    try:
        uri = tracking_of(tracking, storage)
    except RequestError as error:
        return [_failed("MLflow address", error)]
    why = why_no_tracking(uri)
    return probe(uri) if why is None else [Check("MLflow address", False, f"tracking: {why}")]


def _tried(name: str, check: Callable[[], object]) -> Check:
    try:
        check()
    except OrchestratorError as error:
        return _failed(name, error)
    return Check(name, True, "there, sound, and as the model needs them")


def _failed(name: str, error: OrchestratorError) -> Check:
    detail, _, remedy = str(error).rpartition("; ")
    return Check(name, False, detail or remedy, remedy if detail else "")


def _state(check: Check) -> str:
    if not check.ok:
        return "failed"
    return "warning" if check.warning else "ok"


def rows(areas: Sequence[Area]) -> list[dict[str, Any]]:
    """Every check as plain values."""
    return [
        {
            "area": area.name,
            "name": check.name,
            "state": _state(check),
            "detail": environment.redacted(check.detail),
            "remedy": environment.redacted(check.remedy),
        }
        for area in areas
        for check in area.checks
    ]


def show(areas: Sequence[Area], out: Console) -> None:
    """The table for a person, and what to do first."""
    table = Table("", "check", "found, and what to do", box=None, header_style="bold")
    table.columns[2].overflow = "fold"
    found = rows(areas)
    for row in found:
        remedy = f"\n→ {escape(row['remedy'])}" if row["remedy"] and row["state"] != "ok" else ""
        table.add_row(MARKS[row["state"]], escape(row["name"]), escape(row["detail"]) + remedy)
    out.print(table)
    states = [row["state"] for row in found]
    out.print(f"\n{states.count('failed')} failed, {states.count('warning')} to know of")

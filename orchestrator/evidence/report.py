"""The report of a study: one page that opens anywhere, the same as JSON, and the plots.

It is made from the record and the experiment alone, so it can be made again at any time, for a
study that still runs as well as for one that is done.
"""

import base64
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_text, experiment_sha256
from orchestrator.evidence.account import (
    exports,
    failures,
    limits,
    losses,
    time_spent,
    trial_counts,
)
from orchestrator.evidence.findings import Findings, findings, progress, tracks_of
from orchestrator.evidence.page import page
from orchestrator.evidence.statistics import PairedDifference
from orchestrator.evidence.tables import rows
from orchestrator.evidence.verdict import Comparison
from orchestrator.tracking.record import StudyRecord

FORMAT = 1
PACKAGES = ("m2pt-orchestrator", "torch", "timm", "ray", "mlflow", "optuna", "numpy", "scipy")


@dataclass(frozen=True)
class Origin:
    """How the study was started, for those who want to run it again."""

    command: str = "orchestrator search experiment.yaml"
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())


def installed_versions() -> dict[str, str]:
    """Versions of what decides a result here; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def render(
    record: StudyRecord, experiment: Experiment, origin: Origin | None = None
) -> dict[str, bytes]:
    """Files of the report by name: ``report.html``, ``report.json`` and the plots as SVG.

    Works on any record, also one without a single trial; what is missing is said, not hidden.
    """
    origin = origin or Origin()
    found = findings(record, experiment)
    plots = _plots(found)
    data = as_json(record, experiment, found, origin)
    images = {name.removesuffix(".svg"): _inline(image) for name, image in plots.items()}
    html = page(
        template=resources.files("orchestrator.evidence")
        .joinpath("report.html")
        .read_text(encoding="utf-8"),
        data=data,
        found=found,
        experiment=experiment,
        images=images,
    )
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return {"report.html": html.encode(), "report.json": text.encode(), **plots}


def as_json(
    record: StudyRecord, experiment: Experiment, found: Findings, origin: Origin
) -> dict[str, Any]:
    """Everything that the page says, as plain values; floats that are not finite are None."""
    data = {
        "format": FORMAT,
        "study": experiment.name,
        "status": record.status,
        "progress": progress(record, experiment),
        "started": record.started,
        "ended": record.ended,
        "verdict": {**asdict(found.verdict), "claims": found.verdict.claims},
        "comparison": {
            "test": _comparison(found.test),
            "validation": _comparison(found.validation),
            "arms_tried": found.tried,
        },
        "leaderboard": rows(found),
        "trials": trial_counts(record),
        "seconds": time_spent(record),
        "auxiliaries": {name: asdict(made) for name, made in record.auxiliaries.items()},
        "exports": exports(record),
        "failures": failures(record),
        "gangs_lost": losses(record),
        "limits": limits(record, experiment, found),
        "command": origin.command,
        "experiment_sha256": record.experiment_sha256 or experiment_sha256(experiment),
        "experiment": as_text(experiment),
        "versions": dict(origin.versions),
    }
    finite: dict[str, Any] = _finite(data)
    return finite


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    """The best arm against baseline and control, seed by seed."""
    if comparison is None:
        return None

    def by_seed(values: Mapping[int, float]) -> dict[str, float]:
        return {str(seed): value for seed, value in sorted(values.items())}

    return {
        "arm": comparison.label,
        "metric": comparison.measure.name,
        "values": by_seed(comparison.values),
        "baseline": by_seed(comparison.baseline),
        "control": by_seed(comparison.control),
        "to_baseline": _difference(comparison.to_baseline),
        "to_control": _difference(comparison.to_control),
        "control_to_baseline": _difference(comparison.control_to_baseline),
    }


def _difference(found: PairedDifference | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "n": found.n, "ties": found.ties}


def _plots(found: Findings) -> dict[str, bytes]:
    """The plots that there is something to draw for."""
    from orchestrator.evidence import plots  # matplotlib takes a second, and keeps a cache

    made = {}
    curves = found.curves()
    if curves:
        made["learning-curves.svg"] = plots.learning_curves(curves, found.measure)
    best = found.best
    if best is not None and best.tracks:
        made["scale-trajectories.svg"] = plots.scale_trajectories(tracks_of(best.trials_behind[0]))
        made["scale-heat-map.svg"] = plots.scale_heat_map(best.tracks)
    comparison = found.test or found.validation
    if comparison is not None and comparison.to_baseline is not None:
        columns = [
            ("baseline", comparison.baseline),
            ("best arm", comparison.values),
            (f"{comparison.control_kind} control", comparison.control),
        ]
        made["paired-seeds.svg"] = plots.paired_dots(columns, comparison.measure)
    return made


def _inline(image: bytes) -> str:
    """As a data URI: the page has no resources outside itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"


def _finite(value: Any) -> Any:
    """JSON has no NaN: say nothing rather than something that cannot be read."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value

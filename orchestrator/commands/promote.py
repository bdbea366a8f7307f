"""`promote STUDY`: let a trial's fused model through the gate, and into MLflow's model registry."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.commands.chosen import Chosen, add_trial, chosen
from orchestrator.conduct.places import tracking_of
from orchestrator.evidence.standing import in_a_line
from orchestrator.tracking.reconcile import study_id
from orchestrator.tracking.registry import Candidate, Registry, Version, check_alias, check_name
from orchestrator.tracking.runs import without_secret

if TYPE_CHECKING:  # torch, only once it is needed
    from orchestrator.promotion.export import Export

ALIAS = "champion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --trial, --name, --alias, --tracking."""
    add_trial(parser)
    parser.add_argument("--name", help="of the registered model [the study's name]")
    parser.add_argument("--alias", default=ALIAS, help=f"what shall mean this version [{ALIAS}]")
    parser.add_argument("--tracking", help="MLflow tracking URI [the study's]")


def run(parsed: argparse.Namespace) -> int:
    """Gate, register unless it is registered, point the alias."""
    of = chosen(parsed)
    name, alias = check_name(parsed.name or of.found.name), check_alias(parsed.alias)
    uri = tracking_of(parsed.tracking or of.experiment.tracking, of.found.store.uri)
    registry = Registry.open(uri)
    run_id = registry.run_of(of.found.name, study_id(of.found.name, of.record), of.trial.trial)
    export = of.export()
    tags = _tags(of, export)
    version, new = registry.find(name, tags), False
    if version is None:
        version, new = registry.register(name, _candidate(export, tags), run_id)
    before = registry.point(name, alias, version.version)
    said = {
        "model": name,
        "version": version.version,
        "alias": alias,
        "uri": f"models:/{name}@{alias}",
        "tracking": without_secret(uri),
        "registered": new,
        "alias_moved": before != version.version,
        "alias_before": before,
        "trial": of.trial.trial,
        "label": of.trial.label,
        "sha256": export.sha256,
        "proof": export.about["proof"],
    }
    print(json.dumps(said) if parsed.json else _told(said, version))
    return 0


def _tags(of: Chosen, export: "Export") -> dict[str, str]:
    """Of the version: what it holds, and what speaks for it."""
    scales = [abs(value) for value in export.about["scales"].values()]
    size = f"mean {sum(scales) / len(scales):.4g}, largest {max(scales):.4g}" if scales else "none"
    return {
        "trial_id": of.trial.trial,
        "study": of.found.name,
        "study_id": study_id(of.found.name, of.record),
        "sha256": export.sha256,
        "arm": of.trial.arm,
        "label": of.trial.label,
        "seed": str(of.trial.seed),
        "scales": f"|λ| {size}" if scales else size,
        "evidence": in_a_line(export.about["evidence"]),
    }


def _candidate(export: "Export", tags: dict[str, str]) -> Candidate:
    from orchestrator.promotion.traced import served_by

    traced = export.traced()

    def check(module: Any, predict: Callable[[Any], Any]) -> None:
        traced.check(served_by(module), "as loaded by mlflow.pytorch, the model")
        traced.check(predict, "as loaded by mlflow.pyfunc, the model")

    return Candidate(
        module=traced.module,
        save=traced.save,
        example=traced.example,
        outputs=traced.outputs,
        check=check,
        files=export.files(),
        requirements=traced.requirements,
        tags=tags,
        description=f"Trial {tags['trial_id']} of study {tags['study']}: {tags['evidence']}",
    )


def _told(said: dict[str, Any], version: Version) -> str:
    model, alias = f"{said['model']} version {version.version}", said["alias"]
    if said["registered"]:
        first = f"trial {said['trial']} ({said['label']}) is registered as {model}"
    else:
        first = f"trial {said['trial']} ({said['label']}) was registered before, as {model}"
    if said["alias_moved"]:
        before = said["alias_before"]
        moved = f"the alias {alias} means it now" + (
            f", and no more version {before}" * bool(before)
        )
    else:
        moved = "nothing to do" if not said["registered"] else f"the alias {alias} means it"
    return f"{first}; {moved}\nload it: mlflow.pyfunc.load_model({said['uri']!r})"

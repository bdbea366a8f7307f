"""`resume STUDY`: go on with a study from what lies under its storage prefix, and nothing else."""

import argparse

from orchestrator.commands.options import add_address, add_study, study_of
from orchestrator.commands.outcome import run_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --tracking, --address."""
    add_study(parser)
    add_address(parser)
    parser.add_argument("--tracking", help="MLflow tracking URI, if another than before")


def run(parsed: argparse.Namespace) -> int:
    """Carry on."""
    found = study_of(parsed)
    update = {"storage": found.store.uri}
    if parsed.tracking is not None:
        update["tracking"] = parsed.tracking
    experiment = found.experiment().model_copy(update=update)
    return run_study(experiment, parsed.address, as_json=parsed.json)

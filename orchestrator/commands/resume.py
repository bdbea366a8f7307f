"""`resume STUDY`: go on with a study from what lies under its storage prefix, and nothing else."""

import argparse

from orchestrator.commands.options import add_address, add_study, study_of
from orchestrator.conduct.ownership import resumed_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --set, --tracking, --address."""
    add_study(parser)
    add_address(parser)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
        help="change a key of placement: resources, checkpoints or budget, e.g. "
        "--set budget.trials=40 (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--tracking", help="MLflow tracking URI, if another than before")


def run(parsed: argparse.Namespace) -> int:
    """Carry on."""
    found = study_of(parsed)
    update = {"storage": found.store.uri}
    if parsed.tracking is not None:
        update["tracking"] = parsed.tracking
    stored = resumed_experiment(found.store, found.name, parsed.overrides)
    experiment = stored.model_copy(update=update)
    from orchestrator.commands.outcome import run_study  # what draws and counts takes seconds

    return run_study(experiment, parsed.address, as_json=parsed.json)

"""`search FILE`: run a study, or go on with it; say at once when it is finished."""

import argparse

from orchestrator.commands.options import add_address, add_experiment, experiment_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking, --address."""
    add_experiment(parser)
    add_address(parser)


def run(parsed: argparse.Namespace) -> int:
    """Carry out the study and print what it came to."""
    experiment = experiment_of(parsed, parsed.file)
    from orchestrator.commands.outcome import run_study  # what draws and counts takes seconds

    return run_study(experiment, parsed.address, as_json=parsed.json)

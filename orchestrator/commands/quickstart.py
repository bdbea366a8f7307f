"""`quickstart`: `search search_spaces/quickstart.yaml`, with its parts started for the user."""

import argparse

from orchestrator.commands.options import add_address, add_overrides, experiment_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--set, --storage, --tracking, --address."""
    add_overrides(parser)
    add_address(parser)


def run(parsed: argparse.Namespace) -> int:
    """Carry out the example study."""
    experiment = experiment_of(parsed, "quickstart")
    from orchestrator.commands.outcome import run_study  # what draws and counts takes seconds

    return run_study(experiment, parsed.address, as_json=parsed.json)

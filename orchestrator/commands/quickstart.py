"""`quickstart`: `search search_spaces/quickstart.yaml`, with its parts started for the user."""

import argparse

from orchestrator.commands.options import add_address, add_overrides, experiment_of
from orchestrator.commands.outcome import run_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--set, --storage, --tracking, --address."""
    add_overrides(parser)
    add_address(parser)


def run(parsed: argparse.Namespace) -> int:
    """Carry out the example study."""
    return run_study(experiment_of(parsed, "quickstart"), parsed.address, as_json=parsed.json)

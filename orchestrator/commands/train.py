"""`train FILE`: the file's own configuration, once: a study of one trial."""

import argparse

from orchestrator.commands.options import add_address, add_experiment, experiment_of
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict, from_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking, --address."""
    add_experiment(parser)
    add_address(parser)


def run(parsed: argparse.Namespace) -> int:
    """Carry out the study of one trial."""
    experiment = one_trial(experiment_of(parsed, parsed.file))
    from orchestrator.commands.outcome import run_study  # what draws and counts takes seconds

    return run_study(experiment, parsed.address, as_json=parsed.json)


def one_trial(experiment: Experiment) -> Experiment:
    """The same configuration with nothing searched, on one seed, under a name of its own."""
    data = as_dict(experiment)
    data["name"] = f"{experiment.name}-train"
    data["search"] |= {"space": {}, "trials": 1, "seeds": 1, "confirm": 0}
    data["search"]["scheduler"]["kind"] = "none"
    data["resources"]["concurrent_trials"] = 1  # a second gang would be opened for nobody
    return from_dict(data)

"""`pretrain FILE`: only make the weights that the file pre-trains, and say how to name them."""

import argparse
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.commands.options import add_address, add_experiment, experiment_of
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict, from_dict
from orchestrator.errors import RequestError

if TYPE_CHECKING:
    from orchestrator.conduct.study import Conclusion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking, --address."""
    add_experiment(parser)
    add_address(parser)


def run(parsed: argparse.Namespace) -> int:
    """Carry out the study that ends where trials would begin."""
    experiment = weights_alone(experiment_of(parsed, parsed.file))
    from orchestrator.commands.outcome import run_study  # what draws and counts takes seconds

    return run_study(experiment, parsed.address, as_json=parsed.json, purpose="pretrain")


def weights_alone(experiment: Experiment) -> Experiment:
    """The file's pre-trainings, used or not, under a name of their own; nothing is searched.

    Raises `RequestError` where there is none.
    """
    data = as_dict(experiment)
    made = [name for name, one in experiment.auxiliaries.items() if one.pretrain is not None]
    of_target = experiment.target is not None and experiment.target.pretrain is not None
    if not (made or of_target):
        raise RequestError(
            f"{experiment.name}: there is nothing to pre-train: neither an auxiliary nor target "
            "has `pretrain`"
        )
    data["name"] = f"{experiment.name}-pretrain"
    data["auxiliaries"] = {name: data["auxiliaries"][name] for name in made}
    data["pathway"]["auxiliary"] = made or None
    data["target"] = data["target"] if of_target else None
    data["search"] |= {"space": {}, "trials": 1, "seeds": 1, "confirm": 0}
    data["search"]["scheduler"]["kind"] = "none"
    gangs = min(experiment.resources.concurrent_trials, len(made) + of_target)
    data["resources"]["concurrent_trials"] = gangs  # a further one would be opened for nobody
    return from_dict(data)


def show(conclusion: "Conclusion", *, as_json: bool) -> None:
    """Each of the weights, and the names that other experiments may know them by."""
    study = conclusion.experiment.name
    ready = conclusion.record.auxiliaries.values()
    if as_json:
        lines = [vars(one) | {"reference": f"study://{study}/{one.name}"} for one in ready]
        about = {
            "study": study,
            "status": conclusion.record.status,
            "already_done": conclusion.already_done,
            "weights": lines,
            "seconds": conclusion.timing.total_seconds,
        }
        print(json.dumps(about, allow_nan=False))
        return
    out = Console(highlight=False)
    table = Table("weights", "epoch", "loss", "sha256", box=None, header_style="bold")
    for one in ready:
        loss = one.metrics.get("pretrain/loss")
        told = "" if loss is None else f"{loss:.4f}"
        epoch = "" if one.epoch is None else str(one.epoch)
        table.add_row(escape(f"study://{study}/{one.name}"), epoch, told, one.sha256[:16])
    out.print(table)
    out.print(
        "\nan experiment under the same storage takes them with `weights: study://...`; the same "
        "`pretrain` section finds them by itself"
    )

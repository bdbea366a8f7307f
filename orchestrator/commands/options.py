"""Arguments that several verbs share, and how they find an experiment or a study."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.conduct.ownership import stored_experiment
from orchestrator.conduct.places import DEFAULT_STORAGE
from orchestrator.config.document import shown
from orchestrator.config.experiment import (
    STUDY_NAME,
    STUDY_NAME_MOST,
    STUDY_NAME_RULE,
    Experiment,
)
from orchestrator.config.io import load_experiment
from orchestrator.errors import RequestError
from orchestrator.storage.address import parse
from orchestrator.storage.uri import Store


@dataclass(frozen=True)
class Located:
    """A study in a store."""

    store: Store
    name: str

    def experiment(self) -> Experiment:
        """Its experiment. Raises `RequestError` where there is none."""
        return stored_experiment(self.store, self.name)


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """FILE and the overrides."""
    parser.add_argument("file", metavar="FILE", help="experiment file, or a shipped one's name")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """What changes an experiment file from outside."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
        help="override a key, e.g. --set training.epochs=3 (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--storage", help="folder or URI of the store (the key `storage`)")
    parser.add_argument("--tracking", help="MLflow tracking URI (the key `tracking`)")


def add_address(parser: argparse.ArgumentParser) -> None:
    """Which Ray to run on."""
    parser.add_argument(
        "--address", help="Ray cluster to join (`auto`: this machine's); left out: start one here"
    )


def add_study(parser: argparse.ArgumentParser) -> None:
    """Which study to look at."""
    parser.add_argument("study", metavar="STUDY", help="its name, or its experiment file")
    parser.add_argument("--storage", help=f"folder or URI of the store [{DEFAULT_STORAGE}]")


def experiment_of(parsed: argparse.Namespace, file: str) -> Experiment:
    """The experiment that the arguments describe. Raises `RequestError`."""
    overrides = list(parsed.overrides)
    for key in ("storage", "tracking"):
        if getattr(parsed, key) is not None:
            overrides.append(f"{key}={getattr(parsed, key)}")
    experiment = load_experiment(file, overrides)
    parse(experiment.storage, f"{file}: storage")
    return experiment


def study_of(parsed: argparse.Namespace) -> Located:
    """The study that STUDY and --storage name. Raises `RequestError`."""
    name, storage = parsed.study, parsed.storage
    if Path(name).suffix in (".yaml", ".yml"):
        experiment = load_experiment(name)
        name, storage = experiment.name, storage or experiment.storage
    if len(name) > STUDY_NAME_MOST or not re.fullmatch(STUDY_NAME, name):
        raise RequestError(
            f"STUDY: the name of a study is {STUDY_NAME_RULE}, not {shown(name)}; give that, or "
            "its experiment file (.yaml)"
        )
    return Located(Store.open(storage or DEFAULT_STORAGE), name)

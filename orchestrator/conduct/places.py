"""Where a study's parts lie, for people: store, report, exports, MLflow."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.config.experiment import Experiment
from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.uri import Store

DEFAULT_STORAGE = "./m2pt-studies"
"""Where studies lie unless an experiment or --storage says otherwise."""


@dataclass(frozen=True)
class Places:
    """The addresses of one study."""

    study: str
    report: str
    exports: str
    tracking: str

    def named(self) -> Iterator[tuple[str, str]]:
        """Each with what it is."""
        yield "study", self.study
        yield "report", self.report
        yield "model", self.exports
        yield "MLflow", self.tracking

    def next_commands(self, experiment: Experiment, *, exports: bool = True) -> list[str]:
        """What a person may want to run now; `exports`: whether there is a model to export."""
        study = named_study(experiment)
        commands = {
            f"orchestrator ui {study}": "compare the trials in MLflow",
            f"orchestrator report {study}": "these figures again",
        }
        if exports:
            commands[f"orchestrator export {study} --to model/"] = "the fused model, ready to load"
            commands[f"orchestrator promote {study}"] = "the same in MLflow's model registry"
        width = max(map(len, commands))
        return [f"{command:<{width}}  # {what}" for command, what in commands.items()]


def places(experiment: Experiment) -> Places:
    """Where the study of this experiment lies."""
    store, name = Store.open(experiment.storage), experiment.name
    return Places(
        study=_shown(store, layout.study(name)),
        report=_shown(store, layout.report(name, "report.html")),
        exports=_shown(store, layout.export(name, "")),
        tracking=tracking_uri(experiment),
    )


def named_study(experiment: Experiment) -> str:
    """The study as a command names it: STUDY, and --storage where that is not the default."""
    store = Store.open(experiment.storage)
    default = store.uri == Store.open(DEFAULT_STORAGE).uri
    option = "" if default else f" --storage {shlex.quote(str(_folder(store) or store.uri))}"
    return f"{experiment.name}{option}"


def tracking_uri(experiment: Experiment) -> str:
    """The MLflow store of the study; an SQLite file beside a folder storage where none is named.

    Raises `RequestError` for a storage that is no folder and names no tracking.
    """
    return tracking_of(experiment.tracking, experiment.storage)


def tracking_of(tracking: str | None, storage: str) -> str:
    """As `tracking_uri`, of the two keys."""
    if tracking is not None:
        return tracking
    folder = _folder(Store.open(storage))
    if folder is None:
        raise RequestError(
            f"tracking: the storage {storage} is no folder, so MLflow needs an address "
            "of its own: --tracking http://HOST:PORT"
        )
    return f"sqlite:///{folder / 'mlflow.db'}"


def _folder(store: Store) -> Path | None:
    """The folder of a store on this machine; None for any other."""
    parts = urlsplit(store.uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _shown(store: Store, key: str) -> str:
    folder = _folder(store)
    return f"{store.uri}/{key}" if folder is None else str(folder / key)

"""A study's name belongs to one experiment: another one under the same name is refused."""

from typing import Any

from orchestrator.config.document import shown
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict, parse_experiment
from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.uri import Missing, Store

PLACEMENT = {
    "storage",
    "tracking",
    "resources.workers",
    "resources.cpus_per_worker",
    "resources.gpus_per_worker",
    "resources.concurrent_trials",
    "checkpoints.every_epochs",
}
"""Keys that may differ between two runs of one study: they change where it runs, not what."""


def stored_experiment(store: Store, study: str) -> Experiment:
    """The experiment of a study in the store. Raises `RequestError` where there is none."""
    try:
        text = store.get(layout.experiment(study))
    except Missing:
        known = sorted({entry.key.split("/")[1] for entry in store.list(layout.STUDIES)})
        there = f"; there are: {', '.join(known)}" if known else "; there is none"
        raise RequestError(f"no study {study!r} lies under {store.uri}{there}") from None
    return parse_experiment(text.decode(), f"{store.uri}/{layout.experiment(study)}")


def check_owner(store: Store, experiment: Experiment) -> None:
    """Raise `RequestError` when another experiment's study lies under this name."""
    try:
        known = stored_experiment(store, experiment.name)
    except RequestError:
        return
    mine, theirs = _flat(experiment), _flat(known)
    differ = sorted(
        path
        for path in mine.keys() | theirs.keys()
        if path not in PLACEMENT and mine.get(path) != theirs.get(path)
    )
    if differ:
        listed = "; ".join(
            f"{path}: {shown(theirs.get(path))} there, {shown(mine.get(path))} here"
            for path in differ[:3]
        )
        more = f" (and {len(differ) - 3} more)" if len(differ) > 3 else ""
        raise RequestError(
            f"name: the study {experiment.name!r} under {store.uri} belongs to another experiment "
            f"({listed}{more}); choose another name (--set name=...) or another storage"
        )


def _flat(experiment: Experiment) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{path}.{key}" if path else key, inner)
        else:
            flat[path] = value

    walk("", as_dict(experiment))
    return flat

"""A study's name belongs to one experiment: another one under the same name is refused."""

from collections.abc import Iterable
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
    "budget.wall_clock_hours",
    "budget.trials",
    "budget.training_hours",
}
"""Keys that may differ between two runs of one study: they change where it runs, not what."""


def stored_experiment(store: Store, study: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a study in the store, with `--set` overrides put over it.

    Raises `RequestError` where there is none, or an override breaks a rule.
    """
    try:
        text = store.get(layout.experiment(study))
    except Missing:
        known = sorted({entry.key.split("/")[1] for entry in store.list(layout.STUDIES)})
        there = f"; there are: {', '.join(known)}" if known else "; there is none"
        raise RequestError(f"no study {study!r} lies under {store.uri}{there}") from None
    return parse_experiment(text.decode(), f"{store.uri}/{layout.experiment(study)}", overrides)


def resumed_experiment(store: Store, study: str, overrides: Iterable[str]) -> Experiment:
    """As `stored_experiment`; overrides may change placement alone.

    Raises `RequestError` where an override changes what the study is.
    """
    known = stored_experiment(store, study)
    experiment = stored_experiment(store, study, overrides)
    if differ := _differences(experiment, known):
        raise RequestError(
            f"--set: a study that is resumed stays what it is ({differ}); what may change is "
            f"{', '.join(sorted(PLACEMENT - {'storage'}))}; for another experiment `search` its "
            "file under another name"
        )
    return experiment


def check_owner(store: Store, experiment: Experiment) -> None:
    """Raise `RequestError` when another experiment's study lies under this name."""
    try:
        known = stored_experiment(store, experiment.name)
    except RequestError:
        return
    if differ := _differences(experiment, known):
        raise RequestError(
            f"name: the study {experiment.name!r} under {store.uri} belongs to another experiment "
            f"({differ}); choose another name (--set name=...) or another storage"
        )


def _differences(here: Experiment, there: Experiment) -> str:
    """What two experiments differ in, placement aside, in words; empty where they are one."""
    mine, theirs = _flat(here), _flat(there)
    differ = sorted(
        path
        for path in mine.keys() | theirs.keys()
        if path not in PLACEMENT and mine.get(path) != theirs.get(path)
    )
    listed = "; ".join(
        f"{path}: {shown(theirs.get(path))} there, {shown(mine.get(path))} here"
        for path in differ[:3]
    )
    return listed + (f" (and {len(differ) - 3} more)" if len(differ) > 3 else "")


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

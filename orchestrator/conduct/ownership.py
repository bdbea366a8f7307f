"""A study's name belongs to one experiment: another one under the same name is refused."""

import re
from collections.abc import Iterable
from typing import Any

from orchestrator.config.document import shown
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict, as_text, parse_experiment
from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.formats import check_format
from orchestrator.storage.uri import Damaged, Missing, Store
from orchestrator.study.failures import KINDS

FORMAT = 1
"""Of the experiment under a study's prefix."""
_LARGEST_BYTES = 2 * 2**20

PLACEMENT = {
    "storage",
    "tracking",
    "resources.workers",
    "resources.cpus_per_worker",
    "resources.gpus_per_worker",
    "resources.concurrent_trials",
    "resources.sharding",
    "checkpoints.every_epochs",
    "checkpoints.keep_last",
    "checkpoints.keep_best",
    "checkpoints.keep_trials",
    *(f"failures.retries.{kind}" for kind in KINDS),
    "failures.hang_minutes",
    "failures.storage_minutes",
    "budget.wall_clock_hours",
    "budget.trials",
    "budget.training_hours",
}
"""Keys that may differ between two runs of one study: they change where it runs, not what."""


_STATED = re.compile(r"(?:auxiliaries\.[^.]+|target)\.provenance(?:\..+)?")
"""What is said of weights may differ as well: it changes neither."""


def _is_placement(path: str) -> bool:
    return path in PLACEMENT or _STATED.fullmatch(path) is not None


def stored_experiment(store: Store, study: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a study in the store, with `--set` overrides put over it.

    Raises `RequestError` where there is none, or an override breaks a rule, and `StorageError`
    where it is damaged or of a newer format.
    """
    try:
        content = store.get_within(layout.experiment(study), _LARGEST_BYTES)
    except Missing:
        names = {layout.study_of(entry.key) for entry in store.list(layout.STUDIES)}
        known = sorted(name for name in names if name is not None)
        there = f"; there are: {', '.join(known)}" if known else "; there is none"
        raise RequestError(f"no study {study!r} lies under {store.uri}{there}") from None
    shown = f"{store.uri}/{layout.experiment(study)}"
    if head := re.match(rb"# m2pt experiment, format (\d{1,9})\n", content):
        check_format(int(head[1]), FORMAT, shown)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"{shown} is damaged: not UTF-8 at byte {error.start}") from error
    return parse_experiment(text, shown, overrides)


def snapshot(experiment: Experiment) -> bytes:
    """What the prefix keeps of an experiment: a whole experiment file, after its format's number.

    `stored_experiment` reads it, and also a file without the number.
    """
    return f"# m2pt experiment, format {FORMAT}\n{as_text(experiment)}".encode()


def resumed_experiment(store: Store, study: str, overrides: Iterable[str]) -> Experiment:
    """As `stored_experiment`; overrides may change placement alone.

    Raises `RequestError` where an override changes what the study is.
    """
    known = stored_experiment(store, study)
    experiment = stored_experiment(store, study, overrides)
    if differ := _differences(experiment, known):
        raise RequestError(
            f"--set: a study that is resumed stays what it is ({differ}); what may change is "
            f"{', '.join(sorted(PLACEMENT - {'storage'}))}, and the provenance that is stated of "
            "weights; for another experiment `search` its "
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
        if not _is_placement(path) and mine.get(path) != theirs.get(path)
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

"""Experiment files: read, override, check, change, write."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.document import Document, read_yaml, shown, write_yaml
from orchestrator.config.experiment import BASELINE, Experiment
from orchestrator.config.paths import all_paths, put
from orchestrator.config.problems import problems_of, refuse
from orchestrator.config.search_check import check_search
from orchestrator.config.sizes import settled
from orchestrator.errors import RequestError
from search_spaces import catalog

_SOME = Experiment.model_construct(auxiliaries={})
_LARGEST_BYTES = 2**20


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment file, or a shipped one by name, with `--set` overrides put over it.

    Args:
        path: a YAML file, or the name of a shipped experiment (`search_spaces.catalog`).
        overrides: "dotted.path=value" texts; the value is read as YAML.

    Raises:
        RequestError: the file cannot be read or breaks a rule; the message names file and line,
            path, value, rule and, where there is one, the nearest valid name.
    """
    return parse_experiment(_text(path), str(path), overrides)


def parse_experiment(text: str, name: str, overrides: Iterable[str] = ()) -> Experiment:
    """As `load_experiment`, from text; `name` stands for the file in messages."""
    document = read_yaml(text, name)
    if not isinstance(document.data, dict):
        raise RequestError(
            f"{name}: an experiment is a mapping of keys such as name, data and auxiliaries, "
            f"but this is {'empty' if document.data is None else shown(document.data)}"
        )
    document = settled(document, overrides)
    experiment = _validated(document)
    problems = check_search(experiment, lambda values: _broken(experiment, values))
    if problems:
        raise refuse(document, problems)
    return experiment


def apply(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with the value at each dotted path replaced; all rules are checked again.

    Raises:
        RequestError: a path does not exist, or the result breaks a rule.
    """
    data = as_dict(experiment)
    for path, value in values.items():
        try:
            put(data, path, value)
        except KeyError as error:
            raise RequestError(f"{path}: {error.args[0]} is not a section of keys") from None
    return from_dict(data, experiment.name)


def as_dict(experiment: Experiment) -> dict[str, Any]:
    """The whole experiment as plain JSON values, defaults included."""
    return experiment.model_dump(mode="json")


def from_dict(data: Mapping[str, Any], name: str = "experiment") -> Experiment:
    """An experiment from plain values, as `as_dict` gives them.

    Raises:
        RequestError: a rule is broken.
    """
    return _validated(Document(name, dict(data)))


def as_text(experiment: Experiment) -> str:
    """The whole experiment as YAML, defaults included: what a study's prefix keeps."""
    return write_yaml(as_dict(experiment))


def experiment_sha256(experiment: Experiment) -> str:
    """Digest of everything that the file says, whatever its layout."""
    text = json.dumps(as_dict(experiment), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(path: str | Path) -> str:
    file = Path(path)
    if not file.exists() and not file.is_absolute() and not file.suffix:
        try:
            file = catalog.find(str(path))
        except LookupError as error:
            raise RequestError(f"{path}: no such file, and {error}") from None
    try:
        _check_size(file)
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; an experiment is YAML, "
            "saved as UTF-8"
        ) from None
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file{_beside(file)}") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None


def _check_size(file: Path) -> None:
    """Before it is read: somebody may have named a checkpoint, or a device without an end."""
    if not file.is_file() and file.exists():
        what = "a folder" if file.is_dir() else "no ordinary file"
        raise RequestError(f"{file}: is {what}; name an experiment file, or a shipped one")
    size = file.stat().st_size
    if size > _LARGEST_BYTES:
        raise RequestError(
            f"{file}: is larger than 1 MiB ({size / 2**20:.1f} MiB), and so no experiment file; "
            "name a YAML file"
        )


def _beside(file: Path) -> str:
    found = sorted(other.name for other in file.parent.glob("*.yaml"))
    return f"; beside it there is {', '.join(found[:5])}" if found else ""


def _validated(document: Document) -> Experiment:
    data = _null_for_none(document.data)
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError as error:
        raise RequestError(f"{document.name}: {error}") from None
    try:
        return Experiment.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise refuse(document, problems_of(error, data, all_paths(_SOME))) from None


def _broken(experiment: Experiment, values: Mapping[str, Any]) -> str | None:
    try:
        apply(experiment, values)
    except RequestError as error:
        return str(error).removeprefix(f"{experiment.name}: ")
    return None


def _null_for_none(data: Any) -> Any:
    """`none` and null say the same of pathway.auxiliary; in the space it is always null."""
    space = data["search"].get("space") if isinstance(data.get("search"), dict) else None
    if not isinstance(space, dict):
        return data
    plain = {path: _plain(path, distribution) for path, distribution in space.items()}
    return {**data, "search": {**data["search"], "space": plain}}


def _plain(path: str, distribution: Any) -> Any:
    if not isinstance(distribution, dict):
        return distribution
    plain = dict(distribution)
    if path == "pathway.auxiliary":
        for kind in ("choice", "grid"):
            if isinstance(plain.get(kind), list):
                plain[kind] = [None if value == BASELINE else value for value in plain[kind]]
    when = plain.get("when")
    if isinstance(when, dict) and "pathway.auxiliary" in when:
        wanted = when["pathway.auxiliary"]
        listed: Sequence[Any] = wanted if isinstance(wanted, list) else [wanted]
        changed = [None if value == BASELINE else value for value in listed]
        plain["when"] = {**when, "pathway.auxiliary": changed}
    return plain

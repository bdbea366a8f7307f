"""`--set path=value`: one value of an experiment file replaced before it is checked."""

import json
from typing import Any

from orchestrator.config.document import Document, read_yaml, without_user
from orchestrator.config.paths import put
from orchestrator.errors import RequestError
from search_spaces.space import KINDS

_SPACE = "search.space."
_SHOWN_AT_MOST = 120


def overridden(document: Document, override: str) -> Document:
    """`document` with one override put over it.

    The value is read as YAML. Below `search.space` the rest of the path is one searched path, on
    its own (`search.space.training.epochs={choice: [2, 4]}`; null takes it out of the search) or
    with the name of a distribution (`search.space.training.epochs.choice=[2, 4]`).

    Raises:
        RequestError: not of the form path=value, not YAML, or the path leads through a value.
    """
    path, equals, text = override.partition("=")
    path, source = path.strip(), _shown(override)
    if not equals or not all(path.split(".")):
        raise RequestError(f"{source}: must be path=value, for example training.epochs=3")
    return put_value(document, path, read_yaml(text, source).data, source)


def put_value(document: Document, path: str, value: Any, source: str) -> Document:
    """`document` with one value put at a dotted path; `source` says in messages where it stands.

    Raises:
        RequestError: the path leads through a value.
    """
    data: dict[str, Any] = json.loads(json.dumps(document.data))
    keys = tuple(path.split("."))
    try:
        if path.startswith(_SPACE):
            keys = _put_searched(data, path.removeprefix(_SPACE), value)
        else:
            put(data, path, value)
    except KeyError as error:
        raise RequestError(f"{source}: {error.args[0]} is not a section of keys") from None
    kept = {at: line for at, line in document.origins.items() if at[: len(keys)] != keys}
    return Document(document.name, data, {**kept, keys: source})


def _shown(override: str) -> str:
    """How messages name an override: on one line, without a password, not at any length."""
    text = " ".join(without_user(override).split())
    return f"--set {text if len(text) <= _SHOWN_AT_MOST else text[: _SHOWN_AT_MOST - 1] + '…'}"


def _put_searched(data: dict[str, Any], path: str, value: Any) -> tuple[str, ...]:
    """Keys of the search space hold dots themselves."""
    put(data, f"{_SPACE}x", None)  # makes, or refuses, the way there
    space: dict[str, Any] = data["search"]["space"]
    del space["x"]
    searched, _, last = path.rpartition(".")
    if last in (*KINDS, "when"):
        old = space.get(searched) or {}
        kept = {key: old[key] for key in old if last == "when" or key == "when"}
        value = {**kept, last: value}
    else:
        searched = path
    if value is None:
        space.pop(searched, None)
    else:
        space[searched] = value
    return ("search", "space", searched)

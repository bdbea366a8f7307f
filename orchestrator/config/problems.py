"""What is wrong with an experiment, as lines that name file, path, value, rule and nearest name."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.config.document import Document, Path, shown
from orchestrator.config.experiment import STUDY_NAME_RULE, RuleError
from orchestrator.config.names import nearest
from orchestrator.config.paths import known_keys
from orchestrator.errors import RequestError

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_NO_NAME = ("string_pattern_mismatch", "string_too_long", "string_too_short")
_SHOWN_AT_MOST = 12
_KINDS = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "string_type": "must be text",
    "bool_type": "must be true or false",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(
        ("dict_type", "model_type", "dataclass_type", "model_attributes_type"),
        "must be a mapping of keys",
    ),
    "too_short": "must list at least one value",
}
"""What pydantic calls a wrong type, in YAML's words."""


@dataclass(frozen=True)
class Problem:
    """One broken rule; `path` leads to the value, or to where it is missing."""

    path: Path
    rule: str

    def line(self, document: Document) -> str:
        """One line for people."""
        where = document.where(self.path)
        named = ".".join(map(str, self.path))
        return f"{where}: {named}: {self.rule}" if named else f"{where}: {self.rule}"


def refuse(document: Document, problems: Sequence[Problem]) -> RequestError:
    """One error out of at least one problem."""
    lines = list(dict.fromkeys(problem.line(document) for problem in problems))
    if len(lines) == 1:
        return RequestError(lines[0])
    more = [f"... and {len(lines) - _SHOWN_AT_MOST} more"] if len(lines) > _SHOWN_AT_MOST else []
    head = f"{document.name}: {len(lines)} problems"
    return RequestError("\n  ".join([head, *lines[:_SHOWN_AT_MOST], *more]))


def problems_of(error: ValidationError, data: Any, paths: Iterable[str]) -> list[Problem]:
    """The problems that pydantic found in `data`, one for each place.

    `paths` are dotted paths that exist; they are offered where a key stands in the wrong section.
    """
    known = tuple(paths)
    rules: dict[Path, list[str]] = {}
    for detail in error.errors(include_url=False):
        path, rule = _read(dict(detail), data, known)
        rules.setdefault(path, []).append(rule)
    # Where one branch of a union looked inside the value, the others have nothing to add.
    outer = {path[:length] for path in rules for length in range(len(path))}
    return [Problem(path, _joined(found)) for path, found in rules.items() if path not in outer]


def _read(detail: dict[str, Any], data: Any, paths: tuple[str, ...]) -> tuple[Path, str]:
    kind, path = detail["type"], _path_in(detail["loc"], data)
    if kind in _UNKNOWN:
        path = (*path[:-1], detail["loc"][-1]) if path else tuple(detail["loc"])
        return path, _unknown(path, paths)
    if kind == "missing":
        return (*path, detail["loc"][-1]), "is missing; it has no default"
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, RuleError):
        return tuple(cause.path.split(".")), cause.rule
    if isinstance(cause, ValueError):
        return _named_field(path, str(cause))
    if path == ("name",) and kind in _NO_NAME:
        return path, f"must be {STUDY_NAME_RULE}, is {shown(detail['input'])}"
    rule = _KINDS.get(kind) or re.sub(r"^(Input|String|Value) should", "must", detail["msg"])
    return path, f"{rule}, is {shown(detail['input'])}{_expected(detail)}"


def _path_in(location: Sequence[str | int], data: Any) -> Path:
    """The part of pydantic's location that is in the data: it names branches of unions as well."""
    path: list[str | int] = []
    for step in location:
        keyed = isinstance(data, dict) and step in data
        indexed = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if keyed or indexed:
            data = data[step]
            path.append(step)
    return tuple(path)


def _unknown(path: Path, paths: tuple[str, ...]) -> str:
    key, siblings = str(path[-1]), known_keys(path[:-1])
    if difflib.get_close_matches(key, siblings, n=1):
        return f"unknown key{nearest(key, siblings)}"
    elsewhere = [known for known in paths if known.rpartition(".")[2] == key]
    if elsewhere:
        shallowest = min(elsewhere, key=lambda known: known.count("."))
        return f"unknown key here; did you mean {shallowest!r}?"
    return f"unknown key; known here: {', '.join(siblings)}" if siblings else "unknown key"


def _named_field(path: Path, text: str) -> tuple[Path, str]:
    """Rules of the method's own types begin with the name of their field."""
    field, colon, rule = text.partition(": ")
    if colon and field in known_keys(path):
        return (*path, field), rule
    return path, text


def _expected(detail: dict[str, Any]) -> str:
    """A remedy that the kind of the error, or the value, gives away."""
    value = detail["input"]
    if _KINDS.get(detail["type"], "").endswith("number") and _is_number(value):
        return "; take the quotes off"
    if detail["type"] == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    options = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    if isinstance(detail["input"], str) and options:
        close = difflib.get_close_matches(detail["input"], options, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""
    return ""


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _joined(rules: list[str]) -> str:
    """Several branches of a union refused one value: all of what it may be, the value once."""
    if len(rules) == 1:
        return rules[0]
    heads = [rule.partition(", is ")[0] for rule in rules]
    tail = max((rule.partition(", is ")[2] for rule in rules), key=len)
    others = (head.removeprefix("must be ") for head in heads[1:])
    merged = " or ".join(dict.fromkeys([heads[0], *others]))
    return f"{merged}, is {tail}" if tail else merged

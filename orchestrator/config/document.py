"""YAML text -> plain values, remembering where each came from.

YAML 1.2's core schema, so that `1e-3` is a number and `on`, `12:30` and `2024-01-01` are text;
a key may stand only once, and only plain data is read.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeAlias

import yaml

from orchestrator.errors import RequestError

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the root of a document."""

_DEEPEST = 40
_MOST_VALUES = 10_000
_TOO_MANY = f"more than {_MOST_VALUES} values, aliases written out; an experiment has hundreds"
_TAG = "tag:yaml.org,2002:"
_USER_IN_URI = re.compile(r"(?<=://)[^/\s@]*@")
_RULES: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, firsts in _RULES:
        for first in firsts:
            rule = (_TAG + tag, re.compile(f"(?:{pattern})$"))
            table.setdefault("" if first == "\0" else first, []).append(rule)
    return table


class _Excess(yaml.MarkedYAMLError):
    """YAML, but more of it than an experiment has."""


class _Loader(yaml.SafeLoader):
    """Gives up on what no experiment is before it has cost seconds."""

    yaml_implicit_resolvers = _resolvers()
    _depth = 0
    _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                raise self._refusal(f"nested deeper than {_DEEPEST} levels; write it flatter")
            if self._nodes > _MOST_VALUES:
                raise self._refusal(_TOO_MANY)
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _refusal(self, rule: str) -> _Excess:
        return _Excess(problem=rule, problem_mark=self.get_mark())


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    "str": str,
}


@dataclass(frozen=True)
class Document:
    """Plain values (`data`) and, by path, where they were written (`origins`)."""

    name: str
    data: Any
    origins: dict[Path, str] = field(default_factory=dict)

    def where(self, path: Path) -> str:
        """Where the value at `path`, or else the nearest one around it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name


def read_yaml(text: str, name: str) -> Document:
    """Read one YAML document; `name` stands before the line numbers in messages.

    Raises:
        RequestError: not YAML, a key twice, a key that is not text, a tag, or a number that is
            not finite; the message names line and column.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{_at(mark)}" if mark else name
        if isinstance(error, _Excess):
            raise RequestError(f"{where}: {error.problem}") from None
        raise RequestError(
            f"{where}: not valid YAML: {error.problem or error}; look here and on the line above "
            "for a missing colon, quote, bracket or blank"
        ) from None
    except yaml.YAMLError as error:
        raise RequestError(f"{name}: not valid YAML: {error}") from None
    document = Document(name, None)
    if root is None:
        return document
    data = _Reader(document).value(root, (), ())
    return Document(name, data, document.origins)


def write_yaml(data: Any) -> str:
    """Text that `read_yaml` reads back as `data`; keys keep their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def shown(value: Any, limit: int = 80) -> str:
    """A value as a message shows it: JSON, cut where it is long."""
    text = without_user(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def without_user(text: str) -> str:
    """`text` with the user and the password of every URI in it made unreadable."""
    return _USER_IN_URI.sub("***@", text)


def _is_half(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _at(mark: yaml.Mark) -> str:
    return f"{mark.line + 1}:{mark.column + 1}"


class _Reader:
    """Turns nodes into values and notes their lines."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._values = 0

    def value(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._refuse(node, _TOO_MANY)
        if id(node) in above:
            raise self._refuse(node, "an alias stands within its own anchor; write the value out")
        inner = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path, inner)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [
                self.value(item, self._note(item, (*path, index)), inner)
                for index, item in enumerate(node.value)
            ]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> Any:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag != _TAG + "str" or not isinstance(key, str):
                raise self._refuse(key_node, f"a key must be text, is {key!r}; put it in quotes")
            line = key_node.start_mark.line + 1
            if key in lines:
                where = ".".join(map(str, (*path, key)))
                raise self._refuse(
                    key_node, f"duplicate key {where!r}, first on line {lines[key]}; keep one"
                )
            lines[key] = line
            values[key] = self.value(value_node, self._note(key_node, (*path, key)), above)
        return values

    def _scalar(self, node: yaml.Node) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _SCALARS or not isinstance(node, yaml.ScalarNode):
            raise self._refuse(node, f"tag {node.tag!r} is not allowed; only plain data is read")
        try:
            value = _SCALARS[kind](node.value)
        except ValueError:  # a whole number of more digits than Python reads
            raise self._refuse(node, f"a number of {len(node.value)} digits is too long") from None
        if not node.value.isascii() and any(map(_is_half, node.value)):
            raise self._refuse(node, "half a character (a lone surrogate) stands in this text")
        if isinstance(value, float) and not isfinite(value):
            raise self._refuse(node, f"a number must be finite, is {node.value}")
        return value

    def _note(self, node: yaml.Node, path: Path) -> Path:
        self._document.origins[path] = f"{self._document.name}:{_at(node.start_mark)}"
        return path

    def _refuse(self, node: yaml.Node, rule: str) -> RequestError:
        return RequestError(f"{self._document.name}:{_at(node.start_mark)}: {rule}")

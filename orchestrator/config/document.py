"""YAML text -> plain values, remembering where each came from.

YAML 1.2's core schema, so that `1e-3` is a number and `on`, `12:30` and `2024-01-01` are text;
a key may stand only once, and only plain data is read.
"""

import json
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeAlias

import yaml

from orchestrator.errors import RequestError

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the root of a document."""

_TAG = "tag:yaml.org,2002:"
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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


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
            not finite; the message names the line.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise RequestError(f"{where}: not valid YAML: {error.problem or error}") from None
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
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _Reader:
    """Turns nodes into values and notes their lines."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def value(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
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
        lines: dict[Hashable, int] = {}
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
        value = _SCALARS[kind](node.value)
        if isinstance(value, float) and not isfinite(value):
            raise self._refuse(node, f"a number must be finite, is {node.value}")
        return value

    def _note(self, node: yaml.Node, path: Path) -> Path:
        self._document.origins[path] = f"{self._document.name}:{node.start_mark.line + 1}"
        return path

    def _refuse(self, node: yaml.Node, rule: str) -> RequestError:
        return RequestError(f"{self._document.name}:{node.start_mark.line + 1}: {rule}")

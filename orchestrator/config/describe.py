"""The types of the experiment file in words: field texts, type texts, defaults."""

import ast
import dataclasses
import inspect
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orchestrator.config.document import shown
from orchestrator.config.paths import Section, is_union, section_in


def field_texts(section: Section) -> dict[str, str]:
    """The string below each field of a section in its source, own fields over inherited ones."""
    texts: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if issubclass(owner, BaseModel) or dataclasses.is_dataclass(owner):
            texts.update(_own_texts(owner))
    return texts


def section_text(section: Section) -> list[str]:
    """The paragraphs of a section's docstring, without what it raises."""
    text = inspect.cleandoc(section.__doc__ or "")
    return [
        " ".join(paragraph.split())
        for paragraph in text.split("\n\n")
        if not paragraph.startswith("Raises:")
    ]


def type_text(annotation: Any) -> str:
    """A type as a reader of YAML sees it."""
    origin, options = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in options)
    if is_union(annotation):
        return " or ".join(type_text(option) for option in options)
    if origin is tuple:
        return f"list of {type_text(options[0])}"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "section" if section_in(annotation) else "value")


def default_text(section: Section, name: str) -> str:
    """The default of a field as YAML shows it; "required" where there is none."""
    default = _default(section, name)
    if default in (PydanticUndefined, dataclasses.MISSING):
        return "required"
    plain = default if isinstance(default, dict | BaseModel) else _plain(default)
    if isinstance(plain, dict | BaseModel):
        return "none declared" if plain == {} else "as below"
    return f"`{shown(plain)}`"


def _default(section: Section, name: str) -> Any:
    if issubclass(section, BaseModel):
        return section.model_fields[name].get_default(call_default_factory=True, validated_data={})
    field = next(field for field in dataclasses.fields(section) if field.name == name)
    factory = field.default_factory
    return factory() if factory is not dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    """A default as YAML would show it: sections as mappings, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


@cache
def _own_texts(owner: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    texts: dict[str, str] = {}
    for field, below in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            texts[field.target.id] = " ".join(below.value.value.split())
    return texts

"""Configurations as plain values that stay the same when a configuration gains a field."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """As `dataclasses.asdict`, without the fields that came later and stand at their default.

    A field that came after results were first stored is declared with the metadata
    `{"later": True}`. What a trial is, and which state belongs to it, is told by these values: a
    configuration that makes no use of such a field means what it meant before there was one.
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {field: getattr(value, field.name) for field in fields(value)}
        return {
            field.name: plain(inner)
            for field, inner in found.items()
            if not (field.metadata.get("later") and inner == field.default)
        }
    if isinstance(value, Mapping):
        return {key: plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(found) for found in value)
    return value

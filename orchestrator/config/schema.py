"""A JSON schema of the experiment file, for editors: completion, types and texts as one writes."""

from collections.abc import Iterator
from typing import Any

from orchestrator.config.describe import field_texts
from orchestrator.config.experiment import Experiment
from orchestrator.config.paths import (
    Section,
    all_paths,
    keys_of,
    named_sections,
    section_in,
    why_unsearchable,
)
from orchestrator.config.sizes import KEYS

_NONE_DECLARED = Experiment.model_construct(auxiliaries={})


def experiment_schema() -> dict[str, Any]:
    """The schema (draft 2020-12), made from the types; it knows what may be searched."""
    schema = Experiment.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    for section in set(_sections(Experiment)):
        known = definitions.get(section.__name__, {}).get("properties", {})
        for name, text in field_texts(section).items():
            if name in known:
                known[name]["description"] = text
    space = definitions["Search"]["properties"]["space"]
    definitions["Distribution"] = space.pop("additionalProperties")
    reference = {"$ref": "#/$defs/Distribution"}
    space["properties"] = {path: dict(reference) for path in _searchable()}
    space["additionalProperties"] = False
    schema["properties"] |= {
        "sizes": {"type": "object", "additionalProperties": {"type": "object"}},
        "size": {"type": ["string", "null"]},
    }
    for name, text in KEYS.items():
        schema["properties"][name]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _searchable() -> tuple[str, ...]:
    return tuple(path for path in all_paths(_NONE_DECLARED) if why_unsearchable(path) is None)


def _sections(section: Section) -> Iterator[Section]:
    yield section
    for annotation in keys_of(section).values():
        inner = section_in(annotation) or named_sections(annotation)
        if inner is not None:
            yield from _sections(inner)

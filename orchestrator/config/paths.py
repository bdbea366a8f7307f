"""Dotted paths through the types of the experiment file: which exist, which may be searched."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from orchestrator.config.experiment import Experiment

Section: TypeAlias = type[Any]
"""A class whose fields are keys of the file: a pydantic model or a dataclass."""

UNSEARCHABLE: Mapping[str, str] = {
    "name": "it names the study",
    "seed": "arms are repeated on several seeds by search.seeds; a seed is never chosen",
    "storage": "it says where results are kept, not what they are",
    "tracking": "it says where results are shown, not what they are",
    "search": "it is the search itself",
    "checkpoints": "it does not change what a trial is",
    "failures": "it says what becomes of a trial that fails, not what a trial is",
    "budget": "it says how much the study may take, not what a trial is",
    "auxiliaries": "weights are made ready once, before the first trial; declare one auxiliary for "
    "each variant and search pathway.auxiliary",
    "target": "weights are made ready once, before the first trial; run one study for each",
    "rival": "search its keys one by one, such as rival.kind",
    "resources": "search resources.precision or resources.compile; the rest is placement",
    "resources.workers": "it is placement: it does not change what a trial is",
    "resources.cpus_per_worker": "it is placement: it does not change what a trial is",
    "resources.gpus_per_worker": "it is placement: it does not change what a trial is",
    "resources.concurrent_trials": "it is placement: it does not change what a trial is",
    "resources.loader_workers": "it is placement: it does not change what a trial is",
    "resources.sharding": "it is placement: it does not change what a trial is",
}
"""Path -> why it cannot be searched; but for `resources` and `rival`, with all below it."""

_SEARCHED_BELOW = ("resources", "rival")

BLOCK_SHAPE = ("model", "model.width", "model.depth", "model.mlp_ratio")
"""Keys that decide the shapes of the blocks, which every auxiliary shares with the target."""

PATHWAY_ONLY = (
    "training.scale_learning_rate",
    "training.scale_learning_rate_factor",
    "training.auxiliary_learning_rate_factor",
)
"""Keys outside `pathway` that have no effect without an auxiliary."""


def keys_of(section: Section) -> dict[str, Any]:
    """Field name -> annotation of a section, in the order of its declaration."""
    if issubclass(section, BaseModel):
        return {name: info.annotation for name, info in section.model_fields.items()}
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def section_in(annotation: Any) -> Section | None:
    """The section that an annotation holds (`X`, `X | None`), if it holds one."""
    options = get_args(annotation) if is_union(annotation) else (annotation,)
    for option in options:
        if isinstance(option, type) and (
            issubclass(option, BaseModel) or dataclasses.is_dataclass(option)
        ):
            return option
    return None


def named_sections(annotation: Any) -> Section | None:
    """The section that every value of a `dict[str, X]` is, if it is one."""
    return section_in(get_args(annotation)[1]) if get_origin(annotation) is dict else None


def all_paths(experiment: Experiment) -> tuple[str, ...]:
    """Every path that exists for this experiment, sections included (`search.space` is a leaf)."""
    return tuple(_paths(Experiment, "", tuple(experiment.auxiliaries)))


def known_keys(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys that may stand in the section at `path`; nothing where any or none may."""
    annotation: Any = Experiment
    for key in path:
        section, named = section_in(annotation), named_sections(annotation)
        if named is not None:
            annotation = named
        elif section is not None and key in keys_of(section):
            annotation = keys_of(section)[str(key)]
        else:
            return ()
    section = section_in(annotation)
    return tuple(keys_of(section)) if section is not None else ()


def why_unsearchable(path: str) -> str | None:
    """Why `path` cannot be searched; None where it can."""
    top = path.partition(".")[0]
    return UNSEARCHABLE.get(path) or (None if top in _SEARCHED_BELOW else UNSEARCHABLE.get(top))


def searchable_paths(experiment: Experiment) -> tuple[str, ...]:
    """Every path that `search.space` may name."""
    return tuple(path for path in all_paths(experiment) if why_unsearchable(path) is None)


def needs_auxiliary(path: str) -> bool:
    """Whether `path` has an effect only where an auxiliary is in use."""
    return path in PATHWAY_ONLY or (path.startswith("pathway.") and path != "pathway.auxiliary")


def needs_rival(path: str) -> bool:
    """Whether `path` has an effect only where there is a rival."""
    return path.startswith("rival.") and path != "rival.kind"


def put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of nested mappings, making those that are missing or null.

    Raises:
        KeyError: the path leads through something that is no mapping; its argument is that part.
    """
    *sections, last = path.split(".")
    for depth, key in enumerate(sections, start=1):
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            raise KeyError(".".join(sections[:depth]))
    data[last] = deepcopy(value)  # a later path may lead into it, and it is its owner's


def get(data: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested mappings; None where a section on the way is null.

    Raises:
        KeyError: there is no such path.
    """
    value: Any = data
    for key in path.split("."):
        if value is None:
            return None
        value = value[key]
    return value


def _paths(section: Section, prefix: str, names: tuple[str, ...]) -> Iterator[str]:
    for key, annotation in keys_of(section).items():
        path = prefix + key
        yield path
        inner, named = section_in(annotation), named_sections(annotation)
        if inner is not None:
            yield from _paths(inner, f"{path}.", names)
        elif named is not None:
            for name in names:
                yield f"{path}.{name}"
                yield from _paths(named, f"{path}.{name}.", names)


def is_union(annotation: Any) -> bool:
    """Whether an annotation is `X | Y`, in either spelling."""
    return get_origin(annotation) in (Union, types.UnionType)

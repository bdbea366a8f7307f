"""Arms in words, and which auxiliaries an arm uses. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from m2pt.pathway.config import (
    LINEARS,
    AuxiliaryTraining,
    Coverage,
    Envelope,
    MappingName,
    Pathway,
    Scale,
)
from m2pt.rivals.config import Rival, RivalKind
from orchestrator.config.experiment import BASELINE, Experiment, PathwaySection
from orchestrator.config.paths import needs_auxiliary
from orchestrator.config.rivals import names_of, rival_of
from orchestrator.config.weights import ControlKind
from search_spaces.space import Choice, Grid

Kind = Literal["baseline", "plain", "pathway", "control", "rival"]
"""baseline: no auxiliary, the file's configuration; plain: no auxiliary, something else changed;
control: at least one auxiliary that carries no knowledge, or an arm that runs as a control; rival:
something else in the place of a pathway."""

MATCHED: ControlKind = "random"
"""The kind of control that a confirmed arm is set beside."""


def label(experiment: Experiment, arm: Experiment) -> str:
    """An arm in words: its auxiliary, then only what is searched or differs from the default.

    Args:
        experiment: the study's experiment, whose search space says what is searched.
        arm: the configuration of the arm.
    """
    searched = tuple(experiment.search.space)
    rival = rival_of(arm)
    parts = _rival_parts(rival, arm) if rival else [auxiliary_text(arm.pathway.names)]
    if arm.pathway.names:
        parts += _pathway_parts(arm.pathway, searched)
    others = _other_parts(experiment, arm, searched)
    if not arm.pathway.names and not others and rival is None:
        return f"{BASELINE} (baseline)"
    return " · ".join(parts + others)


def auxiliary_text(names: tuple[str, ...]) -> str:
    """The auxiliaries in words; "none" for the baseline."""
    return "+".join(names) or BASELINE


def coverage_text(coverage: Coverage) -> str:
    """Blocks and linears in words: "all linears", "first:2", "blocks 0,3 qkv+fc2"."""
    blocks, linears = coverage.blocks, "+".join(coverage.linears)
    which = blocks if isinstance(blocks, str) else "blocks " + ",".join(map(str, blocks))
    if coverage.linears == LINEARS:
        return "all linears" if which == "all" else which
    return linears if which == "all" else f"{which} {linears}"


def scale_text(scale: Scale) -> str:
    """λ in words: "λ learned from 0", "λ fixed 0.01 per block"."""
    numbers = scale.init if isinstance(scale.init, tuple) else (scale.init,)
    start = "…".join(f"{number:.3g}" for number in numbers) + (" ‖W‖/‖W'‖" * scale.relative)
    words = [f"λ {'learned from' if scale.learned else 'fixed'} {start}"]
    if scale.granularity != "linear":
        words.append("per block" if scale.granularity == "block" else "one for all")
    if scale.split_qkv:
        words.append("q,k,v apart")
    if scale.envelope != Envelope():
        words.append(f"{scale.envelope.kind} to {scale.envelope.until:.3g}")
    if scale.clamp is not None:
        words.append(f"within ±{scale.clamp:.3g}")
    if scale.merge_every is not None:
        words.append(f"merged every {scale.merge_every} epochs")
    return " ".join(words)


def rival_in(experiment: Experiment, values: Mapping[str, Any]) -> RivalKind | None:
    """The kind of rival that there is once `values` are set in `experiment`."""
    kind: RivalKind | None = values.get("rival.kind", experiment.rival.kind)
    return kind


def names_in(experiment: Experiment, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The auxiliaries of the pathway once `values` are set in `experiment`."""
    section = values.get("pathway")
    whole = section.get("auxiliary") if isinstance(section, Mapping) else None
    fallback = whole if isinstance(section, Mapping) else experiment.pathway.auxiliary
    value = values.get("pathway.auxiliary", fallback)
    return names_of(value)


def is_control(experiment: Experiment, name: str) -> bool:
    """Whether an auxiliary carries no knowledge of its own, declared so or as a matched control."""
    source = experiment.auxiliaries.get(name)
    return "~" in name if source is None else source.control is not None


def kind_of(experiment: Experiment, values: Mapping[str, Any], stage: str) -> Kind:
    """What an arm is for."""
    if rival_in(experiment, values) is not None:
        return "rival"
    if stage == "control":
        return "control"
    names = names_in(experiment, values)
    if not names:
        return "baseline" if stage == "baseline" else "plain"
    return "control" if any(is_control(experiment, name) for name in names) else "pathway"


def control_values(
    experiment: Experiment, values: Mapping[str, Any], kind: ControlKind = MATCHED
) -> dict[str, Any]:
    """The values of an arm with each auxiliary replaced by a control like it."""
    names = [f"{kind}~{name}" for name in names_in(experiment, values)]
    return {**values, "pathway.auxiliary": names[0] if len(names) == 1 else names}


def matched_values(experiment: Experiment, values: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's values with its auxiliary written out, and that of a matched control undone: an arm
    and its matched control give the same."""
    names = [_matched_to(experiment, name) for name in names_in(experiment, values)]
    return {**values, "pathway.auxiliary": names}


def baseline_values(experiment: Experiment) -> dict[str, Any]:
    """What to set in `experiment` for its baseline arm."""
    borrows = experiment.pathway.names or any(
        path == "pathway" or path.startswith("pathway.") for path in experiment.search.space
    )
    plain: dict[str, Any] = {"pathway.auxiliary": None} if borrows else {}
    if experiment.rival.kind is not None or "rival.kind" in experiment.search.space:
        plain["rival.kind"] = None
    return plain


def possible_auxiliaries(experiment: Experiment) -> tuple[str, ...]:
    """Every auxiliary that some trial may use, those that controls are made like included first."""
    searched = experiment.search.space.keys()
    wanted = [pathway_auxiliaries(experiment)]
    if experiment.rival.kind is not None or "rival.kind" in searched:
        named = (experiment.rival.auxiliary, *_values_of(experiment, "rival.auxiliary"))
        wanted += [names_of(value) for value in named]
    return experiment.with_sources(name for names in wanted for name in names)


def pathway_auxiliaries(experiment: Experiment) -> tuple[str, ...]:
    """Every auxiliary that some trial may have in a pathway."""
    wanted = [experiment.pathway.names]
    for path in ("pathway", "pathway.auxiliary"):
        wanted += [names_in(experiment, {path: value}) for value in _values_of(experiment, path)]
    return tuple(dict.fromkeys(name for names in wanted for name in names))


def possible_rivals(experiment: Experiment) -> tuple[Rival, ...]:
    """Every rival that some trial may be, with what decides which auxiliaries fit it."""
    section = experiment.rival
    kinds = [section.kind, *experiment.search.rivals, *_values_of(experiment, "rival.kind")]
    found = [
        replace(section.of_kind(kind), every=every, mapping=rule).plainest()
        for kind in kinds
        if kind is not None
        for every in (section.every, *_values_of(experiment, "rival.every"))
        for rule in (section.mapping, *_values_of(experiment, "rival.mapping"))
    ]
    return tuple(dict.fromkeys(found))


def possible_mappings(experiment: Experiment) -> tuple[MappingName | int | tuple[int, ...], ...]:
    """Every rule by which some trial may join blocks."""
    paths = ("pathway", "pathway.mapping")
    values = [value for path in paths for value in _values_of(experiment, path)]
    sections = [value if isinstance(value, Mapping) else {"mapping": value} for value in values]
    searched = [Pathway(mapping=section["mapping"]) for section in sections if "mapping" in section]
    found = [experiment.pathway.mapping, *(pathway.mapping for pathway in searched)]
    averaged = [one.mapping for one in possible_rivals(experiment) if one.kind == "average"]
    return tuple(dict.fromkeys((found if pathway_auxiliaries(experiment) else []) + averaged))


def _values_of(experiment: Experiment, path: str) -> list[Any]:
    """What a searched path may be; of a range its least, which asks the most of auxiliaries."""
    distribution = experiment.search.space.get(path)
    if distribution is None:
        return []
    if isinstance(distribution, Choice | Grid):
        return list(distribution.values)
    return [distribution.bounds[0]]


def _matched_to(experiment: Experiment, name: str) -> str:
    source = experiment.auxiliaries.get(name)
    if source is not None and source.control == MATCHED and source.like is not None:
        return source.like
    return name.removeprefix(f"{MATCHED}~")


def _pathway_parts(section: PathwaySection, searched: tuple[str, ...]) -> list[str]:
    default = Pathway()
    parts = []
    if section.coverage != default.coverage or _is_searched("pathway.coverage", searched):
        parts.append(coverage_text(section.coverage))
    if section.mapping != default.mapping or _is_searched("pathway.mapping", searched):
        parts.append(_mapping_text(section.mapping))
    if section.scale != default.scale or _is_searched("pathway.scale", searched):
        parts.append(scale_text(section.scale))
    if section.trainable != default.trainable or _is_searched("pathway.trainable", searched):
        parts.append(_training_text(section.training))
    for part, word in (("keep", "held in"), ("prepare", "prepared by"), ("bias", "bias")):
        value = getattr(section, part)
        if value != getattr(default, part) or f"pathway.{part}" in searched:
            parts.append(f"{word} {value}")
    return parts


def _rival_parts(rival: Rival, arm: Experiment) -> list[str]:
    """A rival in words, such as "calm with audio", "every 4 blocks"."""
    names = auxiliary_text(arm.rival.names)
    parts = [f"{rival.kind} with {names}" if rival.borrows else str(rival.kind)]
    if rival.composed:
        parts.append("every block" if rival.every == 1 else f"every {rival.every} blocks")
    for name, word in (("heads", "heads"), ("width", "wide")):
        number = getattr(rival, name)
        parts += [] if number is None else [f"{number} {word}"]
    if rival.kind == "lora":
        parts.append(f"rank {rival.rank}")
    if rival.kind == "average":
        parts.append(f"share {rival.share:.3g}")
    default = Rival()
    if rival.coverage != default.coverage:
        parts.append(coverage_text(rival.coverage))
    if rival.mapping != default.mapping:
        parts.append(_mapping_text(rival.mapping))
    return parts


def _mapping_text(rule: str | int | tuple[int, ...]) -> str:
    if isinstance(rule, tuple):
        return "blocks from " + ",".join(map(str, rule))
    return f"blocks shifted by {rule}" if isinstance(rule, int) else rule


def _training_text(training: AuxiliaryTraining) -> str:
    if training.kind == "low_rank":
        return f"changed by rank {training.rank}"
    if training.kind == "frozen":
        return "frozen"
    return f"trained from {training.start:.3g} on" if training.start else "trained along"


def _other_parts(experiment: Experiment, arm: Experiment, searched: tuple[str, ...]) -> list[str]:
    """Searched keys outside the pathway, each by the last part of its path where that is plain."""
    others = [path for path in searched if path.partition(".")[0] not in ("pathway", "rival")]
    if not arm.pathway.names:
        others = [
            path
            for path in others
            if not needs_auxiliary(path) and _value(arm, path) != _value(experiment, path)
        ]
        others += [
            path
            for path in ("training.epochs", "training.learning_rate")  # what controls change
            if path not in others and _value(arm, path) != _value(experiment, path)
        ]
    last = [path.rpartition(".")[2] for path in others]
    return [
        f"{name if last.count(name) == 1 else path} {_word(_value(arm, path))}"
        for path, name in zip(others, last, strict=True)
    ]


def _is_searched(part: str, searched: tuple[str, ...]) -> bool:
    return any(f"{path}.".startswith(f"{part}.") or path == "pathway" for path in searched)


def _value(experiment: Experiment, path: str) -> Any:
    value: Any = experiment
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)

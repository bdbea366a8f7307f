"""What a confirmed arm is set beside to see whether a pathway beats it at all. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from m2pt.pathway.config import BANDS, Coverage
from m2pt.rivals.config import BORROWING, RivalKind
from m2pt.rivals.size import matched
from orchestrator.config.experiment import Experiment
from orchestrator.config.rivals import RivalSection
from orchestrator.errors import RequestError
from orchestrator.study.trial import resolve
from orchestrator.study.view import TrialView

_SET_HERE = ("pathway", "rival.kind", "rival.auxiliary", "rival.coverage", "rival.mapping")
"""Keys, with all below them, that a rival does not have from its arm's own values."""


def rivals_of(
    experiment: Experiment, trial: TrialView
) -> Iterator[tuple[RivalKind, dict[str, Any]]]:
    """The rivals of a trial's arm, by `search.rivals`: their kinds and what each sets.

    They have the arm's auxiliaries, coverage, mapping and recipe. What a rival cannot have, no arm
    of such a study has: see `config.rivals`.
    """
    if not experiment.search.rivals:
        return
    try:
        own = resolve(experiment, trial.values, trial.seed)
    except RequestError:  # of an experiment that is no longer what it was
        return
    for kind in experiment.search.rivals:
        recipe = {
            path: value
            for path, value in trial.values.items()
            if not any(f"{path}.".startswith(f"{key}.") for key in _SET_HERE)
        }
        yield kind, _values((experiment.rival, own), recipe, kind)


def _values(
    given: tuple[RivalSection, Experiment], recipe: Mapping[str, Any], kind: RivalKind
) -> dict[str, Any]:
    """`given` is the file's section, and the arm's whole configuration."""
    section, own = given
    values: dict[str, Any] = {**recipe, "pathway.auxiliary": None, "rival.kind": kind}
    if kind in BORROWING:
        names = own.pathway.names
        values["rival.auxiliary"] = names[0] if len(names) == 1 else list(names)
    wanted = own.pathway.coverage if kind == "average" else _of_whole(own.pathway.coverage)
    if kind in ("average", "lora") and wanted != section.coverage:
        blocks = wanted.blocks if isinstance(wanted.blocks, str) else list(wanted.blocks)
        values["rival.coverage"] = {"blocks": blocks, "linears": list(wanted.linears)}
    rule = own.pathway.mapping
    if kind == "average" and rule != section.mapping:
        values["rival.mapping"] = list(rule) if isinstance(rule, tuple) else rule
    if kind == "lora":
        rival = replace(own.rival.of_kind(kind), coverage=wanted)
        values["rival.rank"] = matched(rival, own.model, own.pathway, len(own.pathway.names)).rank
    return values


def _of_whole(coverage: Coverage) -> Coverage:
    """The same coverage with qkv in the place of q, k and v."""
    linears = ("qkv" if name in BANDS else name for name in coverage.linears)
    return replace(coverage, linears=tuple(dict.fromkeys(linears)))

"""One trial to be run: a configuration, a seed, and what it is for. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from orchestrator.config.experiment import Experiment
from orchestrator.config.io import apply
from orchestrator.study.arms import auxiliary_text, coverage_text, label, names_in
from orchestrator.study.identity import Digests, arm_id, fingerprint
from orchestrator.study.view import Stage

DigestsOf: TypeAlias = Callable[[Experiment], Digests]
"""Digests of what a trial's own configuration reads (it may differ from the study's)."""


@dataclass(frozen=True)
class TrialPlan:
    """One trial to be run.

    Attributes:
        trial, arm: ids, with and without the seed.
        label: the arm in words.
        values: what is set in the study's experiment, by dotted path.
        auxiliary, coverage: in words; "none" for the baseline.
        experiment: the trial's whole configuration: nothing is left to search, and its seed is
            the trial's.
    """

    trial: str
    arm: str
    label: str
    stage: Stage
    seed: int
    values: Mapping[str, Any]
    auxiliary: str
    coverage: str
    experiment: Experiment


def resolve(experiment: Experiment, values: Mapping[str, Any], seed: int) -> Experiment:
    """A trial's whole configuration. A matched control that `values` name ("random~audio") is
    declared in it.

    Raises:
        RequestError: the values do not fit the experiment, or each other.
    """
    declared = {
        f"auxiliaries.{name}": dict(zip(("control", "like"), name.split("~", 1), strict=True))
        for name in names_in(experiment, values)
        if "~" in name and name not in experiment.auxiliaries
    }
    whole_first = dict(sorted(values.items(), key=lambda item: item[0].count(".")))
    return apply(experiment, {**whole_first, **declared, "search.space": {}, "seed": seed})


def plan_trial(
    experiment: Experiment,
    values: Mapping[str, Any],
    digests: DigestsOf,
    *,
    stage: Stage,
    seed: int,
) -> TrialPlan:
    """The trial that sets `values` in the study's `experiment` and trains it with `seed`.

    Raises:
        RequestError: the values do not fit the experiment, or each other.
    """
    own = resolve(experiment, values, seed)
    known = digests(own)
    return TrialPlan(
        trial=fingerprint(own, seed, known),
        arm=arm_id(own, known),
        label=label(experiment, own),
        stage=stage,
        seed=seed,
        values=dict(values),
        auxiliary=auxiliary_text(own.borrowed),
        coverage=_coverage_text(own),
        experiment=own,
    )


def _coverage_text(own: Experiment) -> str:
    if own.rival.kind in ("average", "lora"):
        return coverage_text(own.rival.coverage)
    return coverage_text(own.pathway.coverage) if own.pathway.names else "none"

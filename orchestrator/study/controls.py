"""What a confirmed arm is compared with, beside the baseline. Pure."""

from collections.abc import Iterator, Mapping
from math import ceil
from statistics import fmean
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.config.searching import ControlArm
from orchestrator.errors import RequestError
from orchestrator.study.arms import control_values
from orchestrator.study.trial import resolve
from orchestrator.study.view import TrialView

COST = {"trained": 1.35, "low_rank": 1.35, "frozen": 1.05}
"""A step's time over the plain target's, by what becomes of W'. trained: the paper's Table 7;
frozen: more than benchmarks/step_overhead.py measured; low_rank: not measured, so the most."""


def controls_of(
    experiment: Experiment, trial: TrialView
) -> Iterator[tuple[ControlArm, dict[str, Any]]]:
    """The controls of a trial's arm, by `search.controls`: their kinds and what each sets.

    `trial` is the one by which the arm was chosen: what it ended with decides `rate`. A control
    that the arm cannot have is left out.
    """
    for kind in experiment.search.controls:
        values = _values(experiment, trial, kind)
        if values is not None:
            yield kind, values


def _values(experiment: Experiment, trial: TrialView, kind: ControlArm) -> dict[str, Any] | None:
    arm = dict(trial.values)
    if kind in ("random", "permuted"):
        return control_values(experiment, arm, kind)
    try:
        own = resolve(experiment, arm, trial.seed)
    except RequestError:  # of an experiment that is no longer what it was
        return None
    if kind == "zero":
        held = {"init": 0.0, "learned": False, "merge_every": None}
        section = {f"pathway.scale.{key}": value for key, value in held.items()}
        return {**arm, **section, "pathway.trainable": False}
    if kind == "reversed":
        mapping = _reversed(own.pathway.mapping)
        return None if mapping is None else {**arm, "pathway.mapping": mapping}
    plain = {path: value for path, value in arm.items() if path.partition(".")[0] != "pathway"}
    plain["pathway.auxiliary"] = None
    if kind == "longer":
        cost = COST[own.pathway.training.kind]
        plain["training.epochs"] = ceil(cost * own.training.epochs)
    if kind == "rate":
        factor = 1 + _mean_scale(trial)
        plain["training.learning_rate"] = float(f"{own.training.learning_rate * factor:.6g}")
    return plain


def _reversed(rule: str | int | tuple[int, ...]) -> str | list[int] | None:
    if isinstance(rule, tuple):
        return list(reversed(rule))
    if isinstance(rule, str) and rule != "identity":
        return "identity" if rule == "reversed" else None
    return "reversed"


def _mean_scale(trial: TrialView) -> float:
    """The mean |λ| over linears and auxiliaries after the trial's last epoch."""
    last = max(trial.epochs, key=lambda done: done.epoch, default=None)
    scales: Mapping[str, float] = {} if last is None else last.scales
    return fmean(map(abs, scales.values())) if scales else 0.0

"""The sections of the experiment file that say what is searched, and how much it may take."""

from typing import Literal

from pydantic import Field, model_validator

from m2pt.rivals.config import RivalKind
from orchestrator.config.metrics import METRICS
from orchestrator.config.names import nearest
from orchestrator.config.upkeep import FrozenSection
from search_spaces.space import Distribution

ControlArm = Literal["random", "permuted", "zero", "reversed", "plain", "longer", "rate"]


class RuleError(ValueError):
    """A rule between fields is broken; `path` (dotted) is the field to change."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(path, rule)
        self.path = path
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}"


class Scheduler(FrozenSection):
    """Which search trials are stopped before their last epoch."""

    kind: Literal["asha", "none"] = "asha"
    """asha: at each rung only the best 1/reduction_factor go on; none: every trial runs out."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs that every trial gets; the first rung."""
    reduction_factor: int = Field(default=3, ge=2)
    """From one rung to the next epochs grow, and trials shrink, by this factor."""


class Search(FrozenSection):
    """What is varied, by whom, for how long, and how the best is confirmed."""

    space: dict[str, Distribution] = Field(default_factory=dict)
    """Dotted path of a key of this file -> what it may be."""
    trials: int = Field(default=16, ge=1)
    """Distinct configurations to try on the file's seed."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe learns from the trials so far (tree-structured Parzen estimator); random does not."""
    metric: str = "val/accuracy"
    """What is compared: val/accuracy; val/map (mean average precision) where samples have sets of
    classes (not in the paper, which gives top-1 accuracy on AudioSet); val/miou (instance mIoU) or
    val/class_miou where points have parts (the paper's Table 2); val/loss or train/loss always.
    Test figures are read once, at the end, and cannot be searched on."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of the metric is better."""
    scheduler: Scheduler = Scheduler()
    """Which search trials are stopped early."""
    seeds: int = Field(default=3, ge=1)
    """The baseline and the confirmed arms run on the seeds seed, seed + 1, ..."""
    confirm: int = Field(default=1, ge=0)
    """How many of the best arms run again on all seeds, each beside its controls."""
    controls: tuple[ControlArm, ...] = ("random",)
    """What each confirmed arm is compared with, beside the baseline (none of it is in the paper).
    random: its auxiliaries replaced by Gaussian weights of the same norms; permuted: by their own
    entries, rows and columns shuffled; zero: its auxiliaries frozen and λ held at 0, which must
    give plain bit for bit; reversed: its blocks joined in reverse order (not with stretched);
    plain: its settings without auxiliaries; longer: plain, and as many epochs more as the arm's
    steps cost more; rate: plain, with the learning rate times 1 + the mean |λ| that the arm
    ended with. The verdict is about the first of them."""
    rivals: tuple[RivalKind, ...] = ()
    """What runs beside each confirmed arm as well, on its seeds, to ask whether a pathway is worth
    more than another way (none of it is in the paper). calm, gats and average use the arm's
    auxiliaries, average and lora its coverage, average its mapping; the rest is the section
    `rival`'s, and the recipe is the arm's. The report sets them beside it, with what each costs
    in use."""

    @model_validator(mode="after")
    def _controls(self) -> "Search":
        if len(set(self.controls)) < len(self.controls):
            raise RuleError("search.controls", f"has one twice: {', '.join(self.controls)}")
        return self

    @model_validator(mode="after")
    def _rivals(self) -> "Search":
        if len(set(self.rivals)) < len(self.rivals):
            raise RuleError("search.rivals", f"has one twice: {', '.join(self.rivals)}")
        return self

    @model_validator(mode="after")
    def _metric(self) -> "Search":
        if self.metric not in METRICS:
            why = (
                ""
                if self.metric.startswith(("val/", "train/"))
                else ("; test figures take no part in a choice")
            )
            raise RuleError(
                "search.metric",
                f"must be one of {', '.join(METRICS)}, is {self.metric!r}{why}"
                f"{nearest(self.metric, METRICS)}",
            )
        if self.metric.endswith("loss") and self.mode == "max":
            raise RuleError(
                "search.mode", f"must be min for {self.metric}: with max the worst arm wins"
            )
        return self


class Budget(FrozenSection):
    """Caps on what the study may take; null is no cap. What a trial is does not depend on them.

    A study that reaches a cap stops with exit code 7; with a larger cap, given in the file or with
    `--set` to the same command or to `resume`, it goes on.
    """

    wall_clock_hours: float | None = Field(default=None, gt=0)
    """Hours during which somebody runs the study, over all its runs; then trials stop at their
    next epoch and keep their checkpoint."""
    trials: int | None = Field(default=None, ge=1)
    """Trials that may be started, of all stages. Those that were started run out; the last places
    are kept for baselines that are still missing."""
    training_hours: float | None = Field(default=None, gt=0)
    """Worker-hours of training, evaluation and pre-training, as they are reported, epoch by epoch;
    then trials stop as with wall_clock_hours."""

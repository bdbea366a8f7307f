"""The experiment file as frozen types: one valid configuration of one arm, and what to vary.

Reading a file, and checking the search space against these types, is `io` and `search_check`;
here are the rules of single fields and of fields among each other. Imports no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from m2pt.data.config import DataConfig
from m2pt.models.config import ModelConfig
from m2pt.pathway.config import Pathway
from m2pt.pretrain.config import PretrainConfig
from m2pt.training.recipe import Numerics, Recipe, TrainingConfig, broken_rules
from orchestrator.config.addresses import names_bucket, why_no_tracking
from orchestrator.config.names import nearest
from orchestrator.config.upkeep import Checkpoints, Failures, FrozenSection
from search_spaces.space import Distribution

BASELINE = "none"
"""How the absence of an auxiliary is written in a file and in a label."""

ControlKind = Literal["random", "permuted"]

METRICS = ("val/accuracy", "val/loss", "train/loss")

STUDY_NAME = r"^[a-z0-9][a-z0-9-]*$"
STUDY_NAME_MOST = 63
STUDY_NAME_RULE = "1 to 63 lower-case letters, digits and hyphens, no hyphen first"


class RuleError(ValueError):
    """A rule between fields is broken; `path` (dotted) is the field to change."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(path, rule)
        self.path = path
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}"


class WeightSource(FrozenSection):
    """Where weights come from: exactly one of `pretrain`, `weights` and `control`."""

    pretrain: PretrainConfig | None = None
    """Make them by masked autoencoding before the study starts."""
    weights: str | None = None
    """Path or URI of a checkpoint (safetensors, or a torch file without pickled code)."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """With `weights`: the digest that the file must have; another file is refused."""
    control: ControlKind | None = None
    """Make them carry no knowledge: `random` (norm-matched Gaussian) or `permuted` (rows and
    columns shuffled); for auxiliaries only."""
    like: str | None = None
    """With `control`: the auxiliary whose shapes and norms are matched."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "WeightSource":
        given = [
            name for name in ("pretrain", "weights", "control") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"must have exactly one of pretrain, weights, control; has {found}")
        if (self.control is None) != (self.like is None):
            raise ValueError(
                "control and like belong together: `control` says how the weights are made, "
                "`like` names the auxiliary that they are matched to"
            )
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256: is of the file that `weights` names; leave it out without")
        return self


@dataclass(frozen=True)
class PathwaySection(Pathway):
    """Which weights are borrowed, and how they are joined to the target.

    With `auxiliary` null or none nothing is borrowed (the baseline) and the other fields have no
    effect. The defaults are the paper's setting.
    """

    auxiliary: str | tuple[str, ...] | None = None
    """Name of a declared auxiliary, a list of several, or null (also written none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (self.auxiliary,) if isinstance(self.auxiliary, str) else self.auxiliary or ()
        if names == (BASELINE,):
            names = ()
        if len(set(names)) < len(names) or BASELINE in names:
            raise ValueError(
                f"auxiliary: a name, or a list of names without repeats and without {BASELINE}, "
                f"not {list(names)!r}"
            )
        one_or_many = names[0] if len(names) == 1 else names
        object.__setattr__(self, "auxiliary", one_or_many if names else None)

    @property
    def names(self) -> tuple[str, ...]:
        """The auxiliaries in use; empty for the baseline."""
        if self.auxiliary is None:
            return ()
        return (self.auxiliary,) if isinstance(self.auxiliary, str) else self.auxiliary

    @property
    def pathway(self) -> Pathway | None:
        """The part that the method reads; None for the baseline."""
        if not self.names:
            return None
        return Pathway(
            coverage=self.coverage,
            mapping=self.mapping,
            scale=self.scale,
            trainable=self.trainable,
        )


class Resources(FrozenSection):
    """What one trial runs on. Only `precision` and `compile` are part of what a trial is."""

    workers: int = Field(default=1, ge=1)
    """Ray Train workers of one trial; the batch is split over them."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray sets aside for each worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs for each worker; 0 trains on the CPU, a fraction shares one."""
    concurrent_trials: int = Field(default=2, ge=1)
    """How many trials train at once, each on a gang of its own."""
    loader_workers: int = Field(default=2, ge=0)
    """Threads of each worker that read ahead where data is streamed; 0 reads as it goes."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """fp32; bf16 (float32 weights, autocast arithmetic); fp64 (for proofs)."""
    compile: bool = False
    """Run the forward through torch.compile."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "Resources":
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise RuleError(
                "resources.gpus_per_worker",
                f"above 1 it must be a whole number, is {self.gpus_per_worker:g}",
            )
        return self


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
    """What is compared: val/accuracy, val/loss or train/loss. Test figures are read once, at
    the end, and cannot be searched on."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of the metric is better."""
    scheduler: Scheduler = Scheduler()
    """Which search trials are stopped early."""
    seeds: int = Field(default=3, ge=1)
    """The baseline and the confirmed arms run on the seeds seed, seed + 1, ..."""
    confirm: int = Field(default=1, ge=0)
    """How many of the best arms run again on all seeds, each beside its matched random control."""

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


class Experiment(FrozenSection):
    """One YAML file: a complete configuration of one arm, plus what a study varies."""

    name: str = Field(pattern=STUDY_NAME, max_length=STUDY_NAME_MOST)
    """Names the study; lower-case letters, digits and hyphens."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every search trial, and the first of `search.seeds`."""
    storage: str = Field(default="./m2pt-studies", min_length=1)
    """Folder or URI under which the study's record, checkpoints and exports are kept."""
    tracking: str | None = None
    """MLflow tracking URI; null is an SQLite file beside a folder storage, and not for a bucket."""
    data: DataConfig
    """The target task."""
    model: ModelConfig = ModelConfig()
    """The target, and the shape of every auxiliary's blocks."""
    auxiliaries: dict[str, WeightSource] = Field(default_factory=dict)
    """Name -> weights that may be borrowed; a name is letters, digits, _ and -."""
    target: WeightSource | None = None
    """Weights that the target starts from; null is from scratch."""
    pathway: PathwaySection = PathwaySection()
    """What is borrowed, and into which layers."""
    training: Recipe = Recipe()
    """How the target is trained."""
    resources: Resources = Resources()
    """What one trial runs on, and in which arithmetic."""
    search: Search = Search()
    """What is varied, and how the best is found and confirmed."""
    checkpoints: Checkpoints = Checkpoints()
    """When resumable state is stored, and what is kept of it."""
    failures: Failures = Failures()
    """Which failures are tried again, and how long is waited for what does not answer."""
    budget: Budget = Budget()
    """How much the study may take before it is drained."""

    @field_validator("tracking")
    @classmethod
    def _tracking(cls, uri: str | None) -> str | None:
        why = None if uri is None else why_no_tracking(uri)
        if why is not None:
            raise ValueError(why)
        return uri

    @model_validator(mode="after")
    def _tracking_of_a_bucket(self) -> "Experiment":
        if names_bucket(self.storage) and self.tracking is None:
            raise RuleError(
                "tracking",
                "must be given where storage is a bucket, which holds no database: write "
                "--tracking http://HOST:PORT of an MLflow server",
            )
        return self

    @model_validator(mode="after")
    def _names(self) -> "Experiment":
        for name, source in self.auxiliaries.items():
            _check_name(name, source)
            _check_like(self.auxiliaries, name, source)
        for name in self.pathway.names:
            if name not in self.auxiliaries:
                raise RuleError(
                    "pathway.auxiliary",
                    f"{name!r} is not declared under auxiliaries"
                    + nearest(name, (*self.auxiliaries, BASELINE)),
                )
        if self.target is not None and self.target.control is not None:
            raise RuleError("target.control", "a control is for auxiliaries only; remove target")
        return self

    @model_validator(mode="after")
    def _fits_depth(self) -> "Experiment":
        blocks, depth = self.pathway.coverage.blocks, self.model.depth
        rule, _, count = blocks.partition(":") if isinstance(blocks, str) else ("", "", "")
        if rule in ("first", "last") and int(count) > depth:
            raise RuleError(
                "pathway.coverage.blocks",
                f"{blocks!r} asks for more blocks than model.depth = {depth}; say all",
            )
        if not isinstance(blocks, str) and max(blocks) >= depth:
            raise RuleError(
                "pathway.coverage.blocks",
                f"block {max(blocks)} does not exist: model.depth is {depth}, so the last is "
                f"{depth - 1}",
            )
        return self

    @model_validator(mode="after")
    def _in_vain(self) -> "Experiment":
        for path, rule in broken_rules(self.training, self.data, self.pathway.pathway):
            raise RuleError(path, rule)
        return self

    @model_validator(mode="after")
    def _rungs(self) -> "Experiment":
        scheduler = self.search.scheduler
        if scheduler.kind == "asha" and scheduler.grace_epochs > self.training.epochs:
            raise RuleError(
                "search.scheduler.grace_epochs",
                f"must be at most training.epochs = {self.training.epochs}, is "
                f"{scheduler.grace_epochs}",
            )
        return self

    def training_config(self) -> TrainingConfig:
        """This configuration as the training loop reads it."""
        return TrainingConfig(
            model=self.model,
            data=self.data,
            pathway=self.pathway.pathway,
            recipe=self.training,
            numerics=Numerics(self.resources.precision, self.resources.compile),
            seed=self.seed,
        )

    def used_auxiliaries(self) -> tuple[str, ...]:
        """The auxiliaries in use and, for controls, those they are made like; sources first."""
        return self.with_sources(self.pathway.names)

    def with_sources(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and, for controls, the auxiliaries they are made like; sources first."""
        ordered: list[str] = []
        for name in names:
            chain = [name]
            while (like := self.auxiliaries[chain[-1]].like) is not None:
                chain.append(like)
            ordered.extend(step for step in reversed(chain) if step not in ordered)
        return tuple(ordered)


def _check_name(name: str, source: WeightSource) -> None:
    if name == f"{source.control}~{source.like}":
        return  # a matched control, as the confirm stage names them
    plain = name.replace("_", "").replace("-", "")
    if not (plain.isascii() and plain.isalnum()) or name == BASELINE:
        raise RuleError(
            f"auxiliaries.{name}",
            f"a name is letters, digits, _ and -, and not {BASELINE!r}; rename {name!r}",
        )


def _check_like(sources: Mapping[str, WeightSource], name: str, source: WeightSource) -> None:
    seen = [name]
    while source.like is not None:
        like = source.like
        if like not in sources:
            raise RuleError(
                f"auxiliaries.{seen[-1]}.like",
                f"{like!r} is not declared under auxiliaries"
                + nearest(like, [other for other in sources if other not in seen]),
            )
        if like in seen:
            circle = " -> ".join((*seen, like))
            raise RuleError(f"auxiliaries.{name}.like", f"runs in a circle: {circle}")
        seen.append(like)
        source = sources[like]

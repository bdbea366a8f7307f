"""The experiment file as frozen types: one valid configuration of one arm, and what to vary.

Reading a file, and checking the search space against these types, is `io` and `search_check`;
here are the rules of single fields and of fields among each other. Imports no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from pydantic import Field, field_validator, model_validator

from m2pt.data.config import DataConfig
from m2pt.models.config import ModelConfig
from m2pt.pathway.config import Pathway
from m2pt.training.recipe import Numerics, Recipe, TrainingConfig, broken_rules
from orchestrator.config.addresses import names_bucket, why_no_tracking
from orchestrator.config.metrics import task_known, why_no_metric
from orchestrator.config.searching import Budget as Budget
from orchestrator.config.searching import RuleError as RuleError
from orchestrator.config.searching import Scheduler as Scheduler
from orchestrator.config.searching import Search as Search
from orchestrator.config.upkeep import Checkpoints, Failures, FrozenSection
from orchestrator.config.weights import TargetSource, maturity, why_unknown
from orchestrator.config.weights import WeightSource as WeightSource

BASELINE = "none"
"""How the absence of an auxiliary is written in a file and in a label."""


STUDY_NAME = r"^[a-z0-9][a-z0-9-]*$"
STUDY_NAME_MOST = 63
STUDY_NAME_RULE = "1 to 63 lower-case letters, digits and hyphens, no hyphen first"


@dataclass(frozen=True)
class PathwaySection(Pathway):
    """Which weights are borrowed, and how they are joined to the target.

    With `auxiliary` null or none nothing is borrowed (the baseline) and the other fields have no
    effect. The defaults are the paper's setting.
    """

    auxiliary: str | tuple[str, ...] | None = None
    """Name of a declared auxiliary, a list of several, or null (also written none). `audio@20` is
    the auxiliary `audio` after epoch 20 of its pre-training, which `keep_epochs` has to name."""

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
        return Pathway(**{part.name: getattr(self, part.name) for part in fields(Pathway)})


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
    sharding: Literal["none", "fsdp2"] = "none"
    """What each of several workers holds. none: the whole model, its gradients and AdamW's moments
    (torch's DistributedDataParallel). fsdp2: its share of them (`fully_shard`, per block), for
    models that do not fit; they learn the same, and a state goes on under either."""
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

    @model_validator(mode="after")
    def _shards(self) -> "Resources":
        if self.sharding == "fsdp2" and self.workers == 1:
            raise RuleError(
                "resources.sharding",
                "fsdp2 spreads a model over workers, and resources.workers is 1: raise it, or set "
                "sharding to none",
            )
        return self


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
    target: TargetSource | None = None
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
            if (rule := why_unknown(name, self.auxiliaries, BASELINE)) is not None:
                raise RuleError("pathway.auxiliary", rule)
        if self.target is not None and self.target.control is not None:
            raise RuleError("target.control", "a control is for auxiliaries only; remove target")
        return self

    @model_validator(mode="after")
    def _metric_of_the_task(self) -> "Experiment":
        task = task_known(self.data)
        rule = task and why_no_metric(self.search.metric, self.data, task)
        if rule:
            raise RuleError("search.metric", rule)
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
    def _fits_blocks(self) -> "Experiment":
        mapping, model = self.pathway.mapping, self.model
        if isinstance(mapping, tuple) and len(mapping) != model.depth:
            raise RuleError(
                "pathway.mapping",
                f"a list has one auxiliary block for each of the model's {model.depth} blocks, "
                f"and {list(mapping)} has {len(mapping)}",
            )
        whole = {
            "pathway.scale.merge_every": self.pathway.scale.merge_every,
            "training.ema_decay": self.training.ema_decay,
        }
        for key, value in whole.items():
            if value is not None and self.resources.sharding != "none":
                raise RuleError(
                    key,
                    f"needs whole weights, and resources.sharding {self.resources.sharding} "
                    "spreads them over workers; leave one of the two out",
                )
        most = min(model.width, int(model.width * model.mlp_ratio))
        ranks = {
            "trainable": self.pathway.training.rank,
            "prepare": self.pathway.prepared_rank or 0,
        }
        for key, rank in ranks.items():
            if rank > most:
                raise RuleError(
                    f"pathway.{key}",
                    f"rank {rank} is more than the {most} that the model's narrowest matrix has",
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

    def source_of(self, name: str) -> WeightSource:
        """Where an auxiliary comes from; of `audio@20` it is what `audio` comes from.

        Raises:
            KeyError: it is not declared.
        """
        return self.auxiliaries[name if name in self.auxiliaries else maturity(name)[0]]

    def used_auxiliaries(self) -> tuple[str, ...]:
        """The auxiliaries in use and, for controls, those they are made like; sources first."""
        return self.with_sources(self.pathway.names)

    def with_sources(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and, for controls, the auxiliaries they are made like; sources first."""
        ordered: list[str] = []
        for name in names:
            chain = [name]
            while (like := self.source_of(chain[-1]).like) is not None:
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
        if like in seen:
            circle = " -> ".join((*seen, like))
            raise RuleError(f"auxiliaries.{name}.like", f"runs in a circle: {circle}")
        others = {key: other for key, other in sources.items() if key not in seen}
        if (rule := why_unknown(like, others)) is not None:
            raise RuleError(f"auxiliaries.{seen[-1]}.like", rule)
        seen.append(like)
        source = sources[like if like in sources else maturity(like)[0]]

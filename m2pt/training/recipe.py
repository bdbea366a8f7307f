"""What to train and how: plain values, checked when they are made. Imports no torch.

The fields that change the result of a trial are all here; where it runs (`session.World`) is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar, Literal, get_args

from m2pt.data.config import DataConfig
from m2pt.models.config import ModelConfig
from m2pt.pathway.config import Pathway
from m2pt.rivals.config import Rival

Train = Literal["all", "probe"]
Precision = Literal["fp32", "bf16", "fp64"]


@dataclass(frozen=True)
class Recipe:
    """How a target is trained: AdamW, linear warm-up and cosine decay, step by step.

    `batch_size` is the effective batch: it is split over all workers and over `accumulate`
    micro-batches, so neither changes what one optimiser step sees.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    epochs: int = 6
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    """Each layer further from the head learns at this factor of the rate of the one above it."""
    warmup_epochs: float = 1.0
    min_learning_rate: float = 1e-6
    """Where the cosine ends; all groups end at this fraction of `learning_rate`."""
    scale_learning_rate: float | None = None
    """Rate of the λ values; None is `learning_rate`. They never decay."""
    scale_learning_rate_factor: float = field(default=1.0, metadata={"later": True})
    """Without a rate of their own, λ values learn at this factor of `learning_rate`."""
    auxiliary_learning_rate_factor: float = 1.0
    """Trainable auxiliary weights learn at this factor of their block's rate."""
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad: float | None = None
    mixup_probability: float = field(default=1.0, metadata={"later": True})
    """How often a batch is mixed at all, by mixup or cutmix (0.5 in the recipe of Table 3)."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata={"later": True})
    """AdamW's two; the paper's recipes all have the default."""
    repeats: int = field(default=1, metadata={"later": True})
    """Each sample stands in its batch so often, each time augmented anew (2 in the recipe of
    Table 4). `batch_size` counts samples, not their repeats."""
    ema_decay: float | None = field(default=None, metadata={"later": True})
    """Evaluation and export take a moving average of the weights, which keeps this much of itself
    at each step, such as 0.9999; null takes the weights as they are (all the paper's recipes)."""
    train: Train = field(default="all", metadata={"later": True})
    """all, or probe: λ and the head alone ("fix acc" of Table 1). What is frozen then runs as in
    evaluation, without drop path, and `pathway.trainable` is false."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be 1 or more, is {getattr(self, name)}")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: cannot split a batch of {self.batch_size} into {self.accumulate} "
                "parts; make batch_size larger or accumulate smaller"
            )
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate: must be above 0, is {self.learning_rate}")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"min_learning_rate: must lie in [0, learning_rate = {self.learning_rate}], "
                f"is {self.min_learning_rate}"
            )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs: must lie in [0, epochs = {self.epochs}], is {self.warmup_epochs}"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"layer_decay: must lie in (0, 1], is {self.layer_decay}; 1 is no layer decay"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: must lie in [0, 1), is {self.label_smoothing}")
        if self.clip_grad is not None and not (isfinite(self.clip_grad) and self.clip_grad > 0):
            raise ValueError(
                f"clip_grad: must be above 0, is {self.clip_grad}; leave it out for no clipping"
            )
        if self.train not in get_args(Train):
            raise ValueError(f"train: {' or '.join(get_args(Train))}, is {self.train!r}")
        if not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"betas: two numbers in [0, 1), are {list(self.betas)}")
        if not 0 <= self.mixup_probability <= 1:
            raise ValueError(f"mixup_probability: must lie in [0, 1], is {self.mixup_probability}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"ema_decay: must lie between 0 and 1, is {self.ema_decay}; leave it out for none"
            )
        for name in (
            "weight_decay",
            "scale_learning_rate_factor",
            "auxiliary_learning_rate_factor",
            "mixup",
            "cutmix",
        ):
            _check_not_negative(name, getattr(self, name))
        if self.scale_learning_rate is not None:
            _check_not_negative("scale_learning_rate", self.scale_learning_rate)
            if self.scale_learning_rate_factor != 1.0:
                raise ValueError(
                    "scale_learning_rate_factor: is of learning_rate, and scale_learning_rate "
                    "gives the rate itself; leave one of the two out"
                )


@dataclass(frozen=True)
class Numerics:
    """Arithmetic of a trial.

    fp32: everything in float32. bf16: float32 weights, autocast arithmetic.
    fp64: everything in float64 (for proofs, not for speed). `compile`: torch.compile the forward.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: Precision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16", "fp64"):
            raise ValueError(f"precision: must be fp32, bf16 or fp64, is {self.precision!r}")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the outcome of one trial, but for the weights it starts from."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: ModelConfig
    data: DataConfig
    pathway: Pathway | None = None
    """None is the baseline: no auxiliary."""
    recipe: Recipe = field(default_factory=Recipe)
    numerics: Numerics = field(default_factory=Numerics)
    seed: int = 0
    rival: Rival | None = field(default=None, metadata={"later": True})
    """Another way than a pathway, which is then None; LoRA has a rank of its own."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: must be 0 or more, is {self.seed}")
        if self.rival is not None and self.pathway is not None:
            raise ValueError("rival: is trained in the place of a pathway; leave one of them out")
        for path, rule in broken_rules(self.recipe, self.data, self.pathway):
            raise ValueError(f"{path}: {rule}")


def broken_rules(
    recipe: Recipe, data: DataConfig, pathway: Pathway | None
) -> Iterator[tuple[str, str]]:
    """(key of the experiment file, rule) of what a recipe asks for in vain."""
    if recipe.repeats > 1 and data.augment == "none":
        yield (
            "training.repeats",
            f"{recipe.repeats} needs data.augment, without which all repeats are the same",
        )
    if recipe.train == "probe" and pathway is not None and pathway.trainable is not False:
        yield (
            "pathway.trainable",
            "must be false with training.train: probe, which trains λ and the head alone",
        )


def _check_not_negative(name: str, value: float) -> None:
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name}: must be 0 or more and finite, is {value}")

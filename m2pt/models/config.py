"""The size of a model and of its tokens, as plain values (stdlib only)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from m2pt.data.config import Modality, Task

NormKind = Literal["layer", "batch"]
Pool = Literal["mean", "token", "token_max"]
Positions = Literal["learned", "fixed"]


@dataclass(frozen=True)
class Tokenizer:
    """How a sample becomes tokens; each modality reads the fields that it needs.

    `patch`: edge of a square patch in pixels (image, video) or in frames and bands (audio).
    `tubelet`: frames in one video patch. `groups`, `group_size`: how many groups of how many
    neighbours a point cloud is cut into. `norm`: what normalises inside the PointNet of a group;
    `batch`, as in Point-MAE, takes the statistics of a micro-batch on all workers together, so
    that their number changes nothing; `training.accumulate` does, for it makes micro-batches
    smaller.

    Raises:
        ValueError: a number is below 1, or `norm` is something else.
    """

    patch: int = 2
    tubelet: int = 2
    groups: int = 32
    group_size: int = 16
    norm: NormKind = "layer"
    hidden: int = field(default=64, metadata={"later": True})
    """Channels inside the PointNet of a group and inside the MLP of its place. Point-MAE's MLP has
    128, and a target that starts from its weights takes that with just so many."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("patch", "tubelet", "groups", "group_size", "hidden"):
            _at_least_one(name, getattr(self, name))
        if self.norm not in get_args(NormKind):
            raise ValueError(f"norm: {' or '.join(get_args(NormKind))}, but it is {self.norm!r}")


@dataclass(frozen=True)
class ModelConfig:
    """A vision transformer: `depth` pre-norm blocks of `width` channels with `heads` heads.

    Raises:
        ValueError: a field breaks its rule; the message names the field, the rule and the value.
    """

    width: int = 64
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path: float = 0.0
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    class_token: bool = field(default=False, metadata={"later": True})
    """A token of its own beside those of the sample, as the paper's image, audio and point models
    have."""
    pool: Pool = field(default="mean", metadata={"later": True})
    """What the head sees. mean: the mean of the sample's tokens, normalised (image, audio and video
    fine-tuning). token: the class token (MAE's linear probe). token_max: that and the maximum over
    the others, with an MLP of two layers as the head (point cloud classification)."""
    positions: Positions = field(default="learned", metadata={"later": True})
    """learned; or fixed, sines and cosines that do not learn (audio and video). Points have an MLP
    of their own."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            _at_least_one(name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(
                f"heads: must divide width ({self.width}), but it is {self.heads!r}; "
                f"try {_nearest_divisor(self.width, self.heads)}"
            )
        if not (self.mlp_ratio > 0 and int(self.width * self.mlp_ratio) >= 1):
            raise ValueError(
                "mlp_ratio: above 0, with at least one hidden channel, "
                f"but it is {self.mlp_ratio!r}; 4.0 is usual"
            )
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(
                "drop_path: a probability from 0 up to but without 1, "
                f"but it is {self.drop_path!r}; 0.1 is usual"
            )
        for name, kinds in (("pool", get_args(Pool)), ("positions", get_args(Positions))):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}: {', '.join(kinds)}, but it is {getattr(self, name)!r}")
        if self.pool != "mean" and not self.class_token:
            raise ValueError(f"pool: {self.pool} needs class_token: true; set both, or mean")
        if self.positions == "fixed" and self.width % 4:
            raise ValueError(f"positions: fixed needs a width that 4 divides, not {self.width}")


def unfit(config: ModelConfig, modality: Modality, task: Task = "classes") -> str | None:
    """The rule that a model of this configuration breaks with samples of a modality, of which a
    task is told; or None."""
    if task == "parts" and (config.class_token or config.pool != "mean"):
        return "class_token: a head that tells the parts of points has none; leave it and pool out"
    if config.positions == "fixed" and modality == "point":
        return "positions: fixed is for patches and tubelets; points have their own; leave it out"
    return None


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: a whole number of 1 or more, but it is {value!r}")


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: abs(n - wanted))

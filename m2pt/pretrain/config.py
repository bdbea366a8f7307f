"""How an auxiliary is made where none exists, as plain values (stdlib only)."""

from dataclasses import dataclass, field
from typing import ClassVar

from m2pt.data.config import DataConfig
from m2pt.models.config import Tokenizer


@dataclass(frozen=True)
class PretrainConfig:
    """Masked autoencoding on the training samples of `data`, without their labels.

    The encoder's width, depth and heads are the target model's; only the tokenizer is the
    auxiliary's own. `mask_ratio` is the fraction of tokens that the encoder does not see.
    `keep_epochs` are epochs of the run after which its weights are kept as well, beside those of
    the last one: an auxiliary `audio` with `keep_epochs: [20, 220]` can be borrowed from as
    `audio@20`, `audio@220` and `audio`, so that the maturity of an auxiliary is a choice of
    `pathway.auxiliary` (paper, Table 6: 20, 220 and 300 epochs). They change nothing of the run.

    Raises:
        ValueError: a field breaks its rule; the message names the field, the rule and the value.
    """

    data: DataConfig
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    mask_ratio: float = 0.6
    decoder_depth: int = 1
    seed: int = 0
    keep_epochs: tuple[int, ...] = ()

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decoder_depth"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: a whole number of 1 or more, but it is {value!r}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"learning_rate: above 0, but it is {self.learning_rate!r}; 1e-3 is usual"
            )
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(
                "mask_ratio: a fraction of the tokens above 0 and below 1, "
                f"but it is {self.mask_ratio!r}; 0.6 is usual"
            )
        if self.seed < 0:
            raise ValueError(f"seed: 0 or more, but it is {self.seed!r}")
        kept = tuple(sorted(set(self.keep_epochs)))
        if len(kept) < len(self.keep_epochs) or not all(1 <= one <= self.epochs for one in kept):
            raise ValueError(
                f"keep_epochs: whole numbers from 1 to epochs = {self.epochs}, none of them twice, "
                f"but it is {list(self.keep_epochs)}"
            )
        object.__setattr__(self, "keep_epochs", kept)

    @property
    def kept(self) -> tuple[int, ...]:
        """The epochs whose weights are kept, in order; the last one always is."""
        return tuple(sorted({*self.keep_epochs, self.epochs}))

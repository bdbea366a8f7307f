"""What data a study trains on, as plain values (stdlib only)."""

import difflib
from dataclasses import dataclass
from typing import ClassVar, Literal

Modality = Literal["image", "audio", "video", "point"]
MODALITIES: tuple[Modality, ...] = ("image", "audio", "video", "point")

EMBEDDED: dict[str, Modality] = {
    "digits": "image",
    "tones": "audio",
    "shapes": "point",
    "clips": "video",
}
"""The samples that need no file, each with its modality."""


@dataclass(frozen=True)
class DataConfig:
    """Where the samples come from and how they are split.

    `source` is an embedded sample ("digits", "tones", "shapes", "clips") or the path of a Parquet
    file whose `split` column says `train` or `test`. Where that file holds only training rows,
    `test_source` names a second one that holds the test rows.

    `validation` is the fraction of the training rows that is held out, stratified by label and
    drawn with `validation_seed`. `augment` changes training samples lightly, by (seed, epoch,
    sample), so it is the same on any number of workers. `limit` keeps the first N training
    samples after the split.

    Raises:
        ValueError: a field breaks its rule; the message names the field, the rule and the value.
    """

    source: str
    test_source: str | None = None
    validation: float = 0.2
    validation_seed: int = 0
    augment: bool = False
    limit: int | None = None

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.source not in EMBEDDED and not _is_parquet(self.source):
            near = difflib.get_close_matches(self.source, EMBEDDED, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"source: one of {', '.join(EMBEDDED)} or a path that ends in .parquet, "
                f"but it is {self.source!r}{hint}"
            )
        if self.test_source is not None:
            if self.source in EMBEDDED:
                raise ValueError(
                    f"test_source: {self.source!r} brings its own test split; leave it out, "
                    f"but it is {self.test_source!r}"
                )
            if not _is_parquet(self.test_source):
                raise ValueError(
                    "test_source: a path that ends in .parquet, "
                    f"but it is {self.test_source!r}; leave it out if the first file has test rows"
                )
        if not 0.0 < self.validation < 1.0:
            raise ValueError(
                "validation: a fraction of the training rows above 0 and below 1, "
                f"but it is {self.validation!r}; 0.2 is usual"
            )
        if self.validation_seed < 0:
            raise ValueError(f"validation_seed: 0 or more, but it is {self.validation_seed!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"limit: 1 or more, but it is {self.limit!r}; leave it out to train on all samples"
            )


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know of a data set.

    `shape` is that of one prepared sample: image (C, H, W), audio (1, T, F) log-mel frames,
    video (C, T, H, W), point (N, 3). `digest` is a sha256 over the content of the data, before
    any split or preparation.
    """

    modality: Modality
    shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    digest: str


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet")

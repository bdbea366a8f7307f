"""What data a study trains on, as plain values (stdlib only)."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Literal, get_args

Modality = Literal["image", "audio", "video", "point"]
Task = Literal["classes", "labels", "parts"]
"""What is told of a sample: its class; a set of classes; or its class and a part for each point."""
Augment = Literal["none", "light", "standard"]
MODALITIES: tuple[Modality, ...] = ("image", "audio", "video", "point")

EMBEDDED: dict[str, Modality] = {
    "digits": "image",
    "tones": "audio",
    "shapes": "point",
    "clips": "video",
    "scenes": "audio",
    "shape-parts": "point",
}
"""The samples that need no file, each with its modality."""

EMBEDDED_TASKS: dict[str, Task] = {"scenes": "labels", "shape-parts": "parts"}
"""What is told of them, where that is not one class."""

FIGURES: dict[Task, tuple[str, ...]] = {
    "classes": ("accuracy",),
    "labels": ("map",),
    "parts": ("miou", "class_miou"),
}
"""What an evaluation tells beside the loss, all from 0 to 1; the first is what people compare.

`map` is the mean over classes of average precision; `miou` and `class_miou` are the instance and
class mean intersection over union of part segmentation (`m2pt.training.tasks`).
"""

_NO_TABLES = frozenset({"arrow", "csv", "h5", "json", "jsonl", "npy", "npz", "tar", "zip"})


@dataclass(frozen=True)
class DataConfig:
    """Where the samples come from and how they are split.

    `source` is an embedded sample ("digits", "tones", "shapes", "clips"; "scenes", sounds with a
    set of classes each; "shape-parts", point clouds with a part for each point), or a table: a
    Parquet file whose `split` column says `train` or `test`, or a folder of parts `part-*.parquet`,
    as `orchestrator data import` writes them; a path, or an address `file:///...` or
    `s3://bucket/...` (its server and credentials come from the standard AWS variables). The path of
    a folder has a `/` in it. Where the table holds only training rows, `test_source` names a second
    one that holds the test rows.

    `validation` is the fraction of the training rows that is held out, stratified by label and
    drawn with `validation_seed`; where the file has a column `group`, whole groups are held out,
    as near to that fraction of each class as they allow. `limit` keeps the first N training
    samples after the split.

    A table whose samples take no more than a GiB is kept in memory. A larger one is streamed: each
    epoch reads its row groups in an order of its own, and mixes `window` samples or more at a time
    (null: half a GiB of them; two windows are held). A number streams a table of any size, and is
    part of what a trial is.

    `augment` changes training samples, by (seed, epoch, sample), so it is the same on any number
    of workers. `light` shifts and stretches a little, for every modality. `standard` is what
    people use for the modality, and `augment_strength` is how much of it: images are cropped and
    resized, put through timm's RandAugment and random erasing; clips are cropped, coloured and
    erased, alike in all frames; spectrograms are rolled, masked (SpecAugment) and get noise; point
    clouds are stretched, moved, jittered and thinned out (not where each point has a label). What
    could change the meaning of a sample is a choice of its own: `mirror` (images and clips, left to
    right, half of them) and `turn` (points about z, by any angle), both with `standard`. What a
    recipe fixes has keys of its own, `rand_augment` to `noise` below, each in the place of what
    `standard` does at its strength.

    Raises:
        ValueError: a field breaks its rule; the message names the field, the rule and the value.
    """

    source: str
    test_source: str | None = None
    validation: float = 0.2
    validation_seed: int = 0
    augment: Augment | bool = "none"
    """`true` is `light` and `false` is `none`, as in older files."""
    augment_strength: float = 1.0
    mirror: bool = False
    turn: bool = False
    limit: int | None = None
    window: int | None = None
    rand_augment: str | None = field(default=None, metadata={"later": True})
    """Images and clips: RandAugment as timm spells it, such as rand-m9-mstd0.5-inc1, alike in all
    frames of a clip, where it takes the place of the change of colours (the recipes of Tables 1
    and 4)."""
    erase: float | None = field(default=None, metadata={"later": True})
    """Images and clips: the probability of random erasing (0.25 in the recipes of Tables 1, 4)."""
    crop: float | None = field(default=None, metadata={"later": True})
    """Images and clips: the least part of the area that a crop keeps (0.08 in the recipes of
    Tables 1 and 4)."""
    mask_frames: int | None = field(default=None, metadata={"later": True})
    """Audio: one stretch of up to so many frames is masked (SpecAugment; 192 in the recipe of
    Table 3)."""
    mask_bands: int | None = field(default=None, metadata={"later": True})
    """Audio: one stretch of up to so many mel bands is masked (48 in the recipe of Table 3)."""
    noise: bool = field(default=True, metadata={"later": True})
    """Audio and points: whether `standard` adds noise to spectrograms, and jitters and drops
    points; false is AudioMAE's recipe, and Point-MAE's scale and translate."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if isinstance(self.augment, bool):
            object.__setattr__(self, "augment", "light" if self.augment else "none")
        if self.source not in EMBEDDED and (rule := _why_no_table(self.source)):
            near = difflib.get_close_matches(self.source, EMBEDDED, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"source: one of {', '.join(EMBEDDED)}, or {rule}{hint}")
        if self.test_source is not None:
            if self.source in EMBEDDED:
                raise ValueError(
                    f"test_source: {self.source!r} brings its own test split; leave it out, "
                    f"but it is {self.test_source!r}"
                )
            if rule := _why_no_table(self.test_source):
                raise ValueError(
                    f"test_source: {rule}; leave it out if the first table has test rows"
                )
        if self.window is not None and (self.source in EMBEDDED or self.window < 1):
            raise ValueError(
                "window: 1 or more samples of a table, null for embedded data, "
                f"but it is {self.window!r}"
            )
        if not 0.0 < self.validation < 1.0:
            raise ValueError(
                "validation: a fraction of the training rows above 0 and below 1, "
                f"but it is {self.validation!r}; 0.2 is usual"
            )
        if self.validation_seed < 0:
            raise ValueError(f"validation_seed: 0 or more, but it is {self.validation_seed!r}")
        self._check_augment()
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"limit: 1 or more, but it is {self.limit!r}; leave it out to train on all samples"
            )

    def _check_augment(self) -> None:
        if self.augment not in get_args(Augment):
            raise ValueError(
                f"augment: one of {', '.join(get_args(Augment))}, but it is {self.augment!r}"
            )
        for name in ("mirror", "turn"):
            if getattr(self, name) and self.augment != "standard":
                raise ValueError(
                    f"{name}: goes with augment: standard, but that is {self.augment}; "
                    "set one of the two"
                )
        if not 0.0 < self.augment_strength <= 2.0:
            raise ValueError(
                "augment_strength: above 0 and at most 2, "
                f"but it is {self.augment_strength!r}; 1 is usual"
            )
        for name, rule in _EXACT.items():
            value = getattr(self, name)
            if value == (True if name == "noise" else None):
                continue
            if self.augment != "standard":
                raise ValueError(
                    f"{name}: goes with augment: standard, but that is {self.augment}; set both, "
                    "or neither"
                )
            if not rule.holds(value):
                raise ValueError(f"{name}: {rule.text}, but it is {value!r}")


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know of a data set.

    `shape` is that of one prepared sample: image (C, H, W), audio (1, T, F) log-mel frames,
    video (C, T, H, W), point (N, 3). `digest` is a sha256 over the content of the data, before
    any split or preparation. `task` is what is told of a sample; for parts, `classes` are
    categories of objects, and `parts` the names of each category's parts.
    """

    modality: Modality
    shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    digest: str
    task: Task = "classes"
    parts: tuple[tuple[str, ...], ...] = ()

    @property
    def outputs(self) -> int:
        """How many logits a model has for a sample, or for each of its points."""
        return self.classes if self.task != "parts" else part_bounds(self.parts)[-1]


def part_bounds(parts: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """The number of each category's first part, and of all parts: they are counted through."""
    return (0, *accumulate(map(len, parts)))


def misplaced(config: DataConfig, modality: Modality) -> str | None:
    """The key of an augmentation that samples of this modality do not have, with its rule; or None.

    Looked at are the exact keys alone: `mirror` and `turn` pass over what they do not know.
    """
    for name, rule in _EXACT.items():
        unset = True if name == "noise" else None
        if getattr(config, name) != unset and modality not in rule.modalities:
            return f"{name}: is for {' and '.join(rule.modalities)} data, not {modality}; leave out"
    return None


@dataclass(frozen=True)
class _Rule:
    """What an exact key of an augmentation may be, and for which modalities it is."""

    text: str
    holds: Callable[[Any], bool]
    modalities: tuple[Modality, ...]


_PICTURES: tuple[Modality, ...] = ("image", "video")
_RAND_AUGMENT = re.compile(r"rand(-((m|n|mmax)\d+|(p|mstd)\d+(\.\d+)?|inc[01]))*")
_MASK = _Rule("a whole number of 0 or more", lambda value: value >= 0, ("audio",))
_EXACT = {
    "rand_augment": _Rule(
        "RandAugment as timm spells it, such as rand-m9-mstd0.5-inc1",
        lambda value: _RAND_AUGMENT.fullmatch(value) is not None,
        _PICTURES,
    ),
    "erase": _Rule("a probability from 0 to 1", lambda value: 0 <= value <= 1, _PICTURES),
    "crop": _Rule("above 0 and at most 1", lambda value: 0 < value <= 1, _PICTURES),
    "mask_frames": _MASK,
    "mask_bands": _MASK,
    "noise": _Rule("true or false", lambda value: isinstance(value, bool), ("audio", "point")),
}


def _why_no_table(place: str) -> str | None:
    """The rule that the address of a table breaks; None where it breaks none."""
    shape = "a path that ends in .parquet, or a folder, with a / in its path"
    scheme, _, rest = place.partition("://")
    if not rest:
        if place.startswith(("s3:", "file:")):
            return f"s3://bucket/folder/ or file:///folder/, but it is {place!r}"
        suffix = place.rpartition("/")[2].rpartition(".")[2].lower()
        folder = "/" in place and suffix not in _NO_TABLES
        return None if folder or place.endswith(".parquet") else f"{shape}, but it is {place!r}"
    if scheme not in ("s3", "file"):
        return f"{shape}, of a path, s3:// or file://, but it is {scheme}://..."
    bucket = rest.partition("/")[0]
    if scheme == "file":
        return None if not bucket else f"file:///absolute/path, but it is {place!r}"
    if "@" in rest or ":" in bucket or "?" in rest:
        return (
            "s3://bucket/folder/: an address carries no key, no secret and no options; set "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    named = bucket and rest.rstrip("/") != bucket
    return None if named else f"s3://bucket/folder/ or s3://bucket/file.parquet, not {place!r}"

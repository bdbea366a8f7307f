"""Where weights come from: the section of the file, and how it names what lies in the store.

A path, `file://`, `s3://`, `hf://` and `timm://` name weights from outside
(`m2pt.weights.address`).

`audio@20` is the auxiliary `audio` after epoch 20 of its pre-training. `study://STUDY/NAME` is what
another study under the same storage has made: an auxiliary, `target`, or a trial that it exported;
`sha256:DIGEST` is a blob of the store.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from m2pt.pretrain.config import PretrainConfig
from m2pt.weights.address import OnDisk, parse
from m2pt.weights.naming.table import AUTO, layout_named
from m2pt.weights.provenance import Modality
from orchestrator.config.names import nearest
from orchestrator.config.upkeep import FrozenSection

ControlKind = Literal["random", "permuted"]
Parts = Literal["all", "blocks"]

STUDY, BLOB = "study://", "sha256:"
_STUDY = re.compile(r"study://([a-z0-9][a-z0-9-]{0,62})/([\w-]+)(?:@([1-9]\d{0,8}))?", re.ASCII)
_BLOB = re.compile(r"sha256:([0-9a-f]{64})")
_AT = re.compile(r"([^@]+)@([1-9]\d{0,8})", re.ASCII)


@dataclass(frozen=True)
class StudyReference:
    """What another study made: an auxiliary, perhaps at an epoch, or a trial's export."""

    study: str
    name: str
    epoch: int | None = None

    @property
    def full_name(self) -> str:
        """`audio`, or `audio@20`."""
        return self.name if self.epoch is None else f"{self.name}@{self.epoch}"


@dataclass(frozen=True)
class BlobReference:
    """A blob of the store."""

    sha256: str


def reference_in(weights: str | None) -> StudyReference | BlobReference | None:
    """What `weights` refers to; None for a file.

    Raises:
        ValueError: it begins like a reference and is none.
    """
    text = weights or ""
    if found := _STUDY.fullmatch(text):
        return StudyReference(found[1], found[2], int(found[3]) if found[3] else None)
    if found := _BLOB.fullmatch(text):
        return BlobReference(found[1])
    if text.startswith(STUDY):
        raise ValueError(
            "weights: what another study made is written study://STUDY/NAME, NAME being one of its "
            "auxiliaries, NAME@EPOCH one at an epoch that it kept, target, or an exported trial's "
            f"id; but it is {text!r}"
        )
    if text.startswith(BLOB):
        raise ValueError(
            f"weights: a blob of the store is written sha256: and 64 hex digits, but it is {text!r}"
        )
    return None


def file_of(weights: str) -> Path | None:
    """The file of this machine that `weights` names; None where it names something else."""
    if reference_in(weights) is not None:
        return None
    address = parse(weights)
    return address.path if isinstance(address, OnDisk) else None


class StatedOrigin(FrozenSection):
    """What weights were made from, in the place of what is known of them.

    Much is known of public checkpoints by their address; of a file of your own nothing is, unless
    it is stated here. What is stated is shown in the plan, in MLflow and in the report, with
    warnings where it undermines the claim that the data is irrelevant, or restricts use. It changes
    no trial, and may be changed when a study is resumed. Not in the paper.
    """

    modality: Modality | None = None
    """Of the data that they were trained on."""
    supervised: bool | None = None
    """Trained with labels or captions (true), or self-supervised (false)."""
    data: str | None = None
    """The data set, in words."""
    lineage: str | None = None
    """The weights that they started from, in words: `scratch`, or as in `DeiT on ImageNet`."""
    involves: tuple[Modality, ...] | None = None
    """Other modalities that had a part in them: of what they started from, or were aligned with."""
    licence: str | None = None
    """As SPDX writes it where it can, such as `CC-BY-NC-4.0`."""


class WeightSource(FrozenSection):
    """Where weights come from: exactly one of `pretrain`, `weights` and `control`.

    docs/weights.md says which public checkpoints can be named, and how.
    """

    pretrain: PretrainConfig | None = None
    """Make them by masked autoencoding before the study starts."""
    weights: str | None = None
    """Path or address of a checkpoint (safetensors, or a torch file without pickled code):
    `file:///PATH`, `s3://BUCKET/KEY`, `hf://OWNER/NAME[@REVISION][/FILE]` on the Hugging Face Hub,
    or `timm://MODEL`; fetched once, and then kept in the store. Or what lies in the store already:
    `study://STUDY/NAME`, an auxiliary that another study under the same storage made
    (`NAME@EPOCH`: at an epoch that it kept; `target`: its pre-trained target; a trial's id: the
    fused model that it exported), or `sha256:DIGEST`, a blob of the store. A study finds out once
    what such a name stands for, and keeps to it."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """With `weights`: the digest that the file must have; another file is refused."""
    layout: str = AUTO
    """With `weights` from outside the store: how the checkpoint names its tensors, as in `timm`,
    `hf-vit` or `imagebind:audio` (docs/weights.md lists them); auto recognises it."""
    provenance: StatedOrigin | None = None
    """With `weights`: what they were made from, where that is not known or known wrongly."""
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
        if self.provenance is not None and self.weights is None:
            raise ValueError("provenance: is of what `weights` names; leave it out without")
        self._check_address()
        return self

    def _check_address(self) -> None:
        inside = reference_in(self.weights) is not None
        if self.layout != AUTO and (inside or self.weights is None):
            raise ValueError(
                "layout: is of a checkpoint from outside that `weights` names; leave it out here"
            )
        layout_named(self.layout)
        if self.weights is not None and not inside:
            try:
                parse(self.weights)
            except ValueError as error:
                raise ValueError(f"weights: {error}") from error


class TargetSource(WeightSource):
    """What the target starts from: weights of its own, and how much of them it takes."""

    parts: Parts = "all"
    """What it takes (paper, section 4.1: the pre-trained setting takes all). all: besides the
    linears of the blocks their norms, the tokenizer, positions and class token, as far as there are
    any and they fit; where sizes differ they are resampled, and `plan` says what is taken. blocks:
    the linears alone. A study that began before there was a choice goes on with what it took."""


def maturity(name: str) -> tuple[str, int | None]:
    """(auxiliary, epoch): of `audio@20` ("audio", 20), of `audio` ("audio", None)."""
    found = _AT.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def why_unknown(name: str, sources: Mapping[str, WeightSource], *others: str) -> str | None:
    """The rule that the name of an auxiliary breaks; None where it may be borrowed from.

    `sources` are the declared ones; `others` may be meant as well.
    """
    if name in sources:
        return None
    base, epoch = maturity(name)
    if epoch is None or base not in sources:
        return f"{name!r} is not declared under auxiliaries" + nearest(
            name, (*_names(sources), *others)
        )
    made = sources[base].pretrain
    if made is None:
        return (
            f"{name!r} is the auxiliary {base!r} after an epoch of its pre-training, but it is not "
            f"pre-trained here; declare one auxiliary for each epoch, with weights: "
            f"study://STUDY/{base}@{epoch} of the study that made it"
        )
    if epoch in made.kept:
        return None
    return (
        f"{name!r}: its weights after epoch {epoch} are not kept; add {epoch} to "
        f"auxiliaries.{base}.pretrain.keep_epochs, which is {list(made.keep_epochs)} (the last, "
        f"{made.epochs}, is kept in any case)"
    )


def _names(sources: Mapping[str, WeightSource]) -> Iterator[str]:
    """Every name that can be borrowed from."""
    for name, source in sources.items():
        yield name
        if source.pretrain is not None:
            yield from (f"{name}@{epoch}" for epoch in source.pretrain.keep_epochs)

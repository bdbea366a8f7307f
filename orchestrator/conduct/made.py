"""A pre-training that a study needs, and what the store knows of it: values, and how they are read.

The record lies under the pre-training's fingerprint, so that every study under the same storage
finds it. It names the blob of the last epoch, as it always did, and in `kept` those of the epochs
that were kept.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from m2pt.data.describe import describe
from m2pt.pretrain.config import PretrainConfig
from orchestrator.config.experiment import Experiment
from orchestrator.errors import ClusterError, OrchestratorError, RequestError, StorageError
from orchestrator.storage import layout
from orchestrator.storage.formats import WrongFormat, check_format
from orchestrator.storage.uri import Damaged, Missing, Store
from orchestrator.study.identity import pretrain_fingerprint
from orchestrator.tracking.record import AuxiliaryRecord

Json = dict[str, Any]
PRETRAINED_FORMAT = 1
_LARGEST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Kept:
    """The weights after one epoch."""

    sha256: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Made:
    """What a pre-training has come to so far: the weights that the store has, by epoch."""

    kept: Mapping[int, Kept] = field(default_factory=dict)
    seconds: float = 0.0

    def with_more(self, outcome: Json) -> "Made":
        """Together with what a gang has now made."""
        more = {int(epoch): _kept(one) for epoch, one in outcome["kept"].items()}
        return Made({**self.kept, **more}, self.seconds + float(outcome["seconds"]))

    def with_used(self, used: Iterable[AuxiliaryRecord], store: Store) -> "Made":
        """With what a study has used of it in the place of what others have made since."""
        own = {
            one.epoch: Kept(one.sha256, one.metrics)
            for one in used
            if one.epoch is not None and store.exists(layout.blob(one.sha256))
        }
        return replace(self, kept={**self.kept, **own})

    def as_bytes(self, last: int) -> bytes:
        """The record; `last` is the number of epochs."""
        kept = {str(epoch): vars(one) for epoch, one in sorted(self.kept.items())}
        said = {"format": PRETRAINED_FORMAT, **vars(self.kept[last]), "seconds": self.seconds}
        return json.dumps({**said, "kept": kept}).encode()

    def events(self, name: str, last: int) -> Iterator[Json]:
        """The `auxiliary_ready` events of `name`: the last epoch's first."""
        for epoch, one in sorted(self.kept.items(), reverse=True):
            ready = {"kind": "auxiliary_ready", **vars(one), "epoch": epoch}
            if epoch == last:
                yield ready | {"name": name, "seconds": self.seconds}
            else:
                yield ready | {"name": f"{name}@{epoch}"}


@dataclass(frozen=True)
class Pretraining:
    """A pre-training that a study needs, under these names."""

    names: tuple[str, ...]
    config: PretrainConfig
    fingerprint: str
    plain_fingerprint: str
    """As `fingerprint`, in plain fp32."""
    whole: bool = False
    """Whether more than the blocks is kept of it."""

    @property
    def place(self) -> str:
        """What stands in the place of a trial's id where its checkpoints lie."""
        return layout.pretraining(self.fingerprint)

    def joined(self, other: "Pretraining") -> "Pretraining":
        """The same one under the names of both, with the epochs that either keeps."""
        kept = (*{*self.config.keep_epochs, *other.config.keep_epochs},)
        config = replace(self.config, keep_epochs=kept)
        return replace(self, names=(*self.names, *other.names), config=config)

    def missing(self, made: Made) -> tuple[int, ...]:
        """The epochs to be kept that are not there, in order."""
        return tuple(epoch for epoch in self.config.kept if epoch not in made.kept)


def pretraining(
    experiment: Experiment, name: str, config: PretrainConfig, *, whole: bool = False
) -> Pretraining:
    """The pre-training behind an auxiliary: who it is follows from data, encoder and recipe."""
    of = (config, experiment.model, describe(config.data).digest)
    numerics = experiment.training_config().numerics
    return Pretraining(
        (name,),
        config,
        pretrain_fingerprint(*of, numerics, whole=whole),
        pretrain_fingerprint(*of, whole=whole),
        whole,
    )


def read_made(store: Store, one: Pretraining, fingerprint: str) -> Made:
    """What the store has of a pre-training; nothing where it has no record, or not the blobs.

    Raises `StorageError` where the record is damaged or of a newer format.
    """
    key = layout.pretrained(fingerprint)
    try:
        content = store.get_within(key, _LARGEST_BYTES)
    except Missing:
        return Made()
    made = parse_made(content, f"{store.uri}/{key}", one.config.epochs)
    there = {
        epoch: kept for epoch, kept in made.kept.items() if store.exists(layout.blob(kept.sha256))
    }
    return replace(made, kept=there)


def failure(where: str, outcome: Json) -> OrchestratorError:
    """The error of a pre-training that came to nothing; its kind says who can do something."""
    kinds: dict[str, type[OrchestratorError]] = {
        "storage": StorageError,
        "worker": ClusterError,
        "hang": ClusterError,
    }
    error = kinds.get(str(outcome.get("failure")), RequestError)
    return error(f"{where}: {outcome.get('error', outcome['kind'])}")


def parse_made(content: bytes, shown: str, last: int) -> Made:
    """What a record says. Raises `StorageError`."""
    try:
        said = json.loads(content)
        check_format(said["format"], PRETRAINED_FORMAT, shown)
        kept = {int(epoch): _kept(one) for epoch, one in dict(said.get("kept", {})).items()}
        return Made({last: _kept(said), **kept}, float(said["seconds"]))
    except WrongFormat:
        raise
    except (
        StorageError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise Damaged(
            f"{shown} is no record of a pre-training: {error}; delete it, and the auxiliary is"
            " made again"
        ) from error


def _kept(said: Mapping[str, Any]) -> Kept:
    """Raises StorageError where the digest is none."""
    layout.blob(said["sha256"])
    return Kept(said["sha256"], dict(said["metrics"]))

"""Before the first trial: what its data and its weights are, by content.

Weights that a study makes itself (`pretrain`) are made once for each storage prefix: their
fingerprint covers everything that changes them, and the store remembers the blob under it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2pt.data.describe import describe
from m2pt.data.schema import DataAway
from m2pt.pathway.coverage import mapping
from m2pt.pretrain.config import PretrainConfig
from orchestrator.conduct.assign import patience
from orchestrator.config.experiment import Experiment, WeightSource
from orchestrator.config.io import as_dict
from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import blobs, layout
from orchestrator.storage.formats import WrongFormat, check_format
from orchestrator.storage.uri import Damaged, Missing, Store
from orchestrator.study.arms import possible_auxiliaries, possible_mappings
from orchestrator.study.identity import Digests, pretrain_fingerprint
from orchestrator.tracking.record import StudyRecord

Json = dict[str, Any]
LeaseAll = Callable[[Mapping[str, Json], Callable[[str, Json], None]], dict[str, Json]]
Emit = Callable[[Mapping[str, Any]], object]

TARGET = "target"  # the name that the target's own weights go by, beside the auxiliaries'
PRETRAINED_FORMAT = 1
_LARGEST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Supply:
    """Has every weight that a study may use as a blob in the store.

    `lease_all` lets gangs carry out assignments; `emit` takes the `auxiliary_ready` and
    `auxiliary_epoch` events.
    """

    store: Store
    experiment: Experiment
    lease_all: LeaseAll
    emit: Emit
    imported: Mapping[str, str] = field(default_factory=dict)
    """As `imported` says."""

    def digests(self) -> Digests:
        """The content of data and weights; what is not there yet is pre-trained first.

        Raises `RequestError` for data or weights that cannot be read, and `StorageError`.
        """
        digests: dict[str, str] = {}
        missing: dict[str, PretrainConfig] = {}
        for name, source in sources(self.experiment).items():
            if name in self.imported:
                digests[name] = self.imported[name]
            elif source.weights is not None:
                digests[name] = self._import(name, source)
                self.emit({"kind": "auxiliary_ready", "name": name, "sha256": digests[name]})
            elif source.pretrain is not None:
                known = self._known(source.pretrain)
                if known is None:
                    missing[name] = source.pretrain
                else:
                    digests[name] = known["sha256"]
                    self.emit({"kind": "auxiliary_ready", "name": name, "reused": True, **known})
        if missing:
            digests |= self._make(missing)
        target = digests.pop(TARGET, None)
        return Digests(data=data_digest(self.experiment), target=target, auxiliaries=digests)

    def _make(self, missing: Mapping[str, PretrainConfig]) -> dict[str, str]:
        assignments: dict[str, Json] = {
            f"pretrain:{name}": {
                "kind": "pretrain",
                "storage": self.store.uri,
                **patience(self.experiment.failures),
                "experiment": as_dict(self.experiment),
                "source": name,
            }
            for name in missing
        }
        digests = {}
        for lease, outcome in self.lease_all(assignments, self._on_report).items():
            name = lease.removeprefix("pretrain:")
            if outcome["kind"] != "finished":
                why = outcome.get("error", outcome["kind"])
                raise RequestError(f"{key_of(name)}.pretrain: {why}")
            made = {key: outcome[key] for key in ("sha256", "seconds", "metrics")}
            key = layout.pretrained(fingerprint(self.experiment, missing[name]))
            self.store.put(key, json.dumps({"format": PRETRAINED_FORMAT, **made}).encode())
            self.emit({"kind": "auxiliary_ready", "name": name, **made})
            digests[name] = made["sha256"]
        return digests

    def _on_report(self, lease: str, value: Json) -> None:
        self.emit({"kind": "auxiliary_epoch", "name": lease.removeprefix("pretrain:"), **value})

    def _known(self, config: PretrainConfig) -> Json | None:
        key = layout.pretrained(fingerprint(self.experiment, config))
        try:
            content = self.store.get_within(key, _LARGEST_BYTES)
        except Missing:
            return None
        made, blob = _pretrained(content, f"{self.store.uri}/{key}")
        return made if self.store.exists(blob) else None

    def _import(self, name: str, source: WeightSource) -> str:
        """Weights from a file, in canonical form, as a blob."""
        from m2pt.weights.load import blocks_to_bytes

        blocks = read_weights(self.experiment, name, source)
        return blobs.put(self.store, blocks_to_bytes(blocks))


def _pretrained(content: bytes, shown: str) -> tuple[Json, str]:
    """What a record of a pre-training says, and the key of its blob. Raises `StorageError`."""
    try:
        said = json.loads(content)
        check_format(said["format"], PRETRAINED_FORMAT, shown)
        made = {name: said[name] for name in ("sha256", "seconds", "metrics")}
        return made, layout.blob(made["sha256"])
    except WrongFormat:
        raise
    except (StorageError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(
            f"{shown} is no record of a pre-training: {error}; delete it, and the auxiliary is"
            " made again"
        ) from error


def imported(store: Store, experiment: Experiment, record: StudyRecord) -> dict[str, str]:
    """Weights whose files are not here, but were once imported by this study: sha256 by name."""
    files = {
        name: Path(source.weights)
        for name, source in sources(experiment).items()
        if source.weights is not None
    }
    return {
        name: record.auxiliaries[name].sha256
        for name, file in files.items()
        if name in record.auxiliaries
        and not file.exists()
        and store.exists(layout.blob(record.auxiliaries[name].sha256))
    }


def data_digest(experiment: Experiment) -> str:
    """The digest of the target's data. Raises `RequestError` where it cannot be read, and
    `StorageError` where its server is away."""
    try:
        return describe(experiment.data).digest
    except DataAway as error:
        raise StorageError(f"data: {error}") from error
    except (ValueError, OSError) as error:
        raise RequestError(f"data: {error}") from error


def read_weights(experiment: Experiment, name: str, source: WeightSource) -> Any:
    """The block weights in the file of a source, which fit the model.

    Raises `RequestError`, naming the key, where they cannot be read or do not fit.
    """
    from m2pt.weights.blocks import check_fit, depth_of_blocks
    from m2pt.weights.load import load_blocks

    assert source.weights is not None  # the caller looked
    try:
        blocks = load_blocks(Path(source.weights), sha256=source.sha256)
        check_fit(blocks, experiment.model, source.weights, any_depth=name != TARGET)
        if name != TARGET:
            check_depth(experiment, depth_of_blocks(blocks))
    except (ValueError, OSError) as error:
        raise RequestError(f"{key_of(name)}.weights: {error}") from error
    return blocks


def check_depth(experiment: Experiment, depth: int) -> None:
    """Raises ValueError unless an auxiliary of so many blocks fits all rules of `pathway.mapping`
    that some trial may have."""
    for rule in possible_mappings(experiment):
        mapping(rule, experiment.model.depth, depth)


def key_of(name: str) -> str:
    """The key of the file under which a source of weights stands."""
    return TARGET if name == TARGET else f"auxiliaries.{name}"


def sources(experiment: Experiment) -> dict[str, WeightSource]:
    """The weights to have at hand, by name: the target's, and those in play or likened to."""
    wanted = {
        name: experiment.auxiliaries[name]
        for name in possible_auxiliaries(experiment)
        if experiment.auxiliaries[name].control is None
    }
    if experiment.target is not None:
        wanted[TARGET] = experiment.target
    return wanted


def fingerprint(experiment: Experiment, config: PretrainConfig) -> str:
    """What decides pre-trained weights: the data's content, the encoder and the recipe."""
    return pretrain_fingerprint(config, experiment.model, describe(config.data).digest)

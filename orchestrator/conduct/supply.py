"""Before the first trial: what its data and its weights are, by content.

Weights that a study makes itself (`pretrain`) are made once for each storage prefix: their
fingerprint covers everything that changes them, and the store remembers the blobs under it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from m2pt.data.describe import describe
from m2pt.data.schema import DataAway
from m2pt.pathway.coverage import mapping
from m2pt.pretrain.config import PretrainConfig
from orchestrator.conduct.assign import patience
from orchestrator.conduct.made import Made, Pretraining, failure, pretraining, read_made
from orchestrator.conduct.outside import load_outside, provenance_made, provenance_said
from orchestrator.conduct.referred import provenance_of, referred
from orchestrator.conduct.starting import started_from, started_pretrained
from orchestrator.config.experiment import Experiment, WeightSource
from orchestrator.config.io import as_dict
from orchestrator.config.weights import TargetSource, file_of, maturity, reference_in
from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted
from orchestrator.storage.removal import remove
from orchestrator.storage.uri import Store
from orchestrator.study.arms import possible_auxiliaries, possible_mappings, possible_rivals
from orchestrator.study.identity import Digests
from orchestrator.tracking.record import AuxiliaryRecord, StudyRecord

Json = dict[str, Any]
LeaseAll = Callable[[Mapping[str, Json], Callable[[str, Json], None]], dict[str, Json]]
Emit = Callable[[Mapping[str, Any]], object]

TARGET = "target"  # the name that the target's own weights go by, beside the auxiliaries'
LEASE = "pretrain:"
"""Before the name of an auxiliary: the lease of its pre-training."""


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
    accepted: Accepted
    """The manifests that count: those of pre-trainings that are gone on with among them."""
    imported: Mapping[str, str] = field(default_factory=dict)
    """As `imported` says."""
    earlier: Mapping[str, AuxiliaryRecord] = field(default_factory=dict)
    """What the study has used before; it goes on with just that."""
    confirm: Callable[[], object] = str
    """Called before a state is deleted; raises where the study is no longer ours."""

    def digests(self) -> Digests:
        """The content of data and weights; what is not there yet is pre-trained first.

        Raises `RequestError` for data or weights that cannot be read, and `StorageError`.
        """
        digests: dict[str, str] = {}
        making: dict[str, PretrainConfig] = {}
        for name, source in sources(self.experiment).items():
            if name in self.imported:
                digests[name] = self.imported[name]
                self._restate(name, source)
            elif source.weights is not None:
                digests[name] = self._import(name, source)
            elif source.pretrain is not None:
                making[name] = source.pretrain
        bases = {maturity(name)[0]: config for name, config in making.items()}
        made = self._pretrained(bases)
        for name, config in making.items():
            base, epoch = maturity(name)
            digests[name] = made[base].kept[epoch or config.epochs].sha256
        target = digests.pop(TARGET, None)
        return Digests(data=data_digest(self.experiment), target=target, auxiliaries=digests)

    def _pretrained(self, configs: Mapping[str, PretrainConfig]) -> dict[str, Made]:
        """What pre-training came to, by name; the same one is made once for all its names."""
        wanted: dict[str, Pretraining] = {}
        for name, config in configs.items():
            one = self._needed(name, config)
            same = wanted.get(one.fingerprint)
            wanted[one.fingerprint] = one if same is None else same.joined(one)
        found = {one.fingerprint: self._known(one) for one in wanted.values()}
        missing = {key: one for key, one in wanted.items() if one.missing(found[key])}
        for key, one in wanted.items():
            if key not in missing:
                self._tell(one, found[key], reused=True)
                self._let_go(one)
        leases = {f"{LEASE}{one.names[0]}": one for one in missing.values()}
        assignments = {
            lease: self._assignment(one, found[one.fingerprint]) for lease, one in leases.items()
        }
        outcomes = self.lease_all(assignments, self._on_report) if assignments else {}
        # what was made is remembered before anything that failed ends the study
        for lease in sorted(outcomes, key=lambda name: outcomes[name]["kind"] != "finished"):
            one, outcome = leases[lease], outcomes[lease]
            found[one.fingerprint] = self._take(one, found[one.fingerprint], outcome)
        return {name: found[one.fingerprint] for one in wanted.values() for name in one.names}

    def _needed(self, name: str, config: PretrainConfig) -> Pretraining:
        """The pre-training behind `name`: of a target all is kept, unless the file says otherwise,
        or this study has begun with the blocks that were all there was."""
        alone = pretraining(self.experiment, name, config)
        target, before = self.experiment.target, self.earlier.get(TARGET)
        if name != TARGET or target is None or not _whole(target):
            return alone
        one = pretraining(self.experiment, name, config, whole=True)
        known = (one.fingerprint, one.plain_fingerprint)
        return one if before is None or before.fingerprint in known else alone

    def _assignment(self, one: Pretraining, known: Made) -> Json:
        checkpoints, missing = self.experiment.checkpoints, one.missing(known)
        return {
            "kind": "pretrain",
            "storage": self.store.uri,
            "study": self.experiment.name,
            "trial": one.place,
            **patience(self.experiment.failures),
            "fence": self.accepted.epoch,
            "accepted": sorted(m for m in self.accepted.manifests if f"/{one.place}/" in m),
            "experiment": as_dict(self.experiment),
            "source": one.names[0],
            "keep": list(missing),
            "whole": one.whole,
            "every_epochs": checkpoints.every_epochs,
            "keep_last": checkpoints.keep_last,
        }

    def _take(self, one: Pretraining, known: Made, outcome: Json) -> Made:
        """Remember what a gang made, and let go of its states."""
        if outcome["kind"] != "finished":
            raise failure(f"{key_of(one.names[0])}.pretrain", outcome)
        made = known.with_more(outcome)
        self.store.put(layout.pretrained(one.fingerprint), made.as_bytes(one.config.epochs))
        self._tell(one, made, reused=False)
        self._let_go(one)
        return made

    def _tell(self, one: Pretraining, made: Made, *, reused: bool) -> None:
        """That weights are ready: the last epoch's under the name, others as `name@epoch`."""
        for name in one.names:
            for event in made.events(name, one.config.epochs):
                marks = {"fingerprint": one.fingerprint, "reused": reused or name != one.names[0]}
                lent = name != TARGET
                told: Json = {}
                if not lent:
                    told = _told(started_pretrained(self.experiment, one.config, whole=one.whole))
                said = provenance_made(self.experiment, one.config, event["sha256"], lent=lent)
                self.emit(event | marks | told | {"provenance": said})

    def _let_go(self, one: Pretraining) -> None:
        folder = layout.checkpoints(self.experiment.name, one.place)
        remove(self.store, [entry.key for entry in self.store.list(folder)], self.confirm)

    def _on_report(self, lease: str, value: Json) -> None:
        self.emit({"kind": "auxiliary_epoch", "name": lease.removeprefix(LEASE), **value})

    def _known(self, one: Pretraining) -> Made:
        """What the store has of a pre-training; first of all what this study has used of it.

        Or of one in the arithmetic of earlier versions, which pre-trained in fp32 whatever
        `resources` said, if this study has used that.
        """
        earlier = self.earlier.values()
        used = [made for made in earlier if made.fingerprint == one.fingerprint]
        made = read_made(self.store, one, one.fingerprint).with_used(used, self.store)
        if one.missing(made) and one.plain_fingerprint != one.fingerprint:
            plain = read_made(self.store, one, one.plain_fingerprint)
            last = plain.kept.get(one.config.epochs)
            before = {made.sha256 for made in earlier}
            if last is not None and last.sha256 in before and not one.missing(plain):
                return plain
        return made

    def _import(self, name: str, source: WeightSource) -> str:
        """Weights from outside, or by reference, in canonical form, as a blob; told as ready."""
        from m2pt.weights.whole import as_before, whole_to_bytes

        found = read_weights(self.experiment, name, source, self.store)
        weights, sha256, before = found.weights, found.sha256, self.earlier.get(name)
        if before is not None and before.sha256 != sha256:
            earlier = as_before(found.source, before.sha256)
            if earlier is not None:  # of a study from before there was more to take
                weights, sha256 = earlier, None
        told = _told(started_from(self.experiment, weights)) if name == TARGET else {}
        sha256 = sha256 or blobs.put(self.store, whole_to_bytes(weights))
        self._ready(name, sha256, found.provenance, told)
        return sha256

    def _ready(self, name: str, sha256: str, said: Json, told: Json) -> None:
        event = {"kind": "auxiliary_ready", "name": name, "sha256": sha256, **told}
        self.emit(event | {"provenance": said})

    def _restate(self, name: str, source: WeightSource) -> None:
        """Tell what the file states of weights now, where that is other than what was told."""
        known = self.earlier.get(name)
        if known is None or known.provenance is None or source.provenance is None:
            return
        said = provenance_said(self.experiment, source, known.provenance)
        if said != known.provenance:
            told = {"started": {"summary": known.started}} if known.started else {}
            self._ready(name, known.sha256, said, told)


def imported(store: Store, experiment: Experiment, record: StudyRecord) -> dict[str, str]:
    """Weights that this study has in the store and does not look for again: sha256 by name.

    Once imported, they are needed no more as files, and a reference stays what it stood for.
    """
    places = {
        name: source.weights
        for name, source in sources(experiment).items()
        if source.weights is not None
    }
    return {
        name: record.auxiliaries[name].sha256
        for name, place in places.items()
        if name in record.auxiliaries
        and ((file := file_of(place)) is None or not file.exists())
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


class FoundWeights(NamedTuple):
    """Weights that fit a model."""

    weights: Any
    """`WholeWeights`; those of an auxiliary are blocks alone."""
    sha256: str | None
    """Of the blob that they are, if they are one."""
    provenance: Json
    """Where they come from, as the journal says it."""
    source: Any
    """The `WholeWeights` that they were taken of."""


def read_weights(
    experiment: Experiment, name: str, source: WeightSource, store: Store | None = None
) -> FoundWeights:
    """The weights that are taken of a source, which fit the model.

    Those of an auxiliary are blocks alone. `store` is the experiment's, where that is open already.

    Raises `RequestError`, naming the key, where they cannot be read or do not fit, and
    `StorageError`.
    """
    from m2pt.weights.blocks import check_fit, depth_of_blocks
    from m2pt.weights.whole import WholeWeights, whole_of

    assert source.weights is not None  # the caller looked
    where, reference, sha256 = f"{key_of(name)}.weights", reference_in(source.weights), None
    try:
        if reference is None:
            loaded = load_outside(source)
            found, known = whole_of(loaded), loaded.provenance.as_dict()
        else:
            opened = store or Store.open(experiment.storage)
            found, sha256 = referred(opened, reference, where, source.sha256)
            known = provenance_of(opened, reference, found, sha256)
        check_fit(found.blocks, experiment.model, source.weights, any_depth=name != TARGET)
        taken = found if _whole(source) else WholeWeights(found.blocks)
        if name == TARGET:
            started_from(experiment, taken)
        else:
            check_depth(experiment, depth_of_blocks(found.blocks))
    except (ValueError, OSError) as error:
        raise RequestError(f"{where}: {error}") from error
    kept = sha256 if taken is found or found.blocks_alone else None
    return FoundWeights(taken, kept, provenance_said(experiment, source, known), found)


def _whole(source: WeightSource) -> bool:
    return isinstance(source, TargetSource) and source.parts == "all"


def _told(started: Any) -> Json:
    """What a target takes of its weights, as the journal has it."""
    return {"started": {"summary": started.summary(), "lines": started.lines()}}


def start_of(experiment: Experiment) -> Any:
    """What the file's model takes of the target's weights, as `Started`; None from scratch.

    Raises as `read_weights`.
    """
    source = experiment.target
    if source is None:
        return None
    if source.pretrain is not None:
        return started_pretrained(experiment, source.pretrain, whole=_whole(source))
    return started_from(experiment, read_weights(experiment, TARGET, source).weights)


def check_depth(experiment: Experiment, depth: int) -> None:
    """Raises ValueError unless an auxiliary of so many blocks fits all rules of `pathway.mapping`,
    and all rivals, that some trial may have."""
    for rule in possible_mappings(experiment):
        mapping(rule, experiment.model.depth, depth)
    for rival in possible_rivals(experiment):
        taps = len(rival.connections(experiment.model.depth)) if rival.composed else 0
        if depth < taps:
            raise ValueError(
                f"rival.every: {rival.every} makes {taps} connections of {rival.kind}, and the "
                f"auxiliary has {depth} blocks; raise it"
            )


def key_of(name: str) -> str:
    """The key of the file under which a source of weights stands."""
    base, _ = maturity(name)
    return TARGET if base == TARGET else f"auxiliaries.{base}"


def sources(experiment: Experiment) -> dict[str, WeightSource]:
    """The weights to have at hand, by name: the target's, and those in play or likened to.

    `audio` and `audio@20` are two of them, of one source.
    """
    wanted = {
        name: source
        for name in possible_auxiliaries(experiment)
        if (source := experiment.source_of(name)).control is None
    }
    if experiment.target is not None:
        wanted[TARGET] = experiment.target
    return wanted

"""Weights that lie in the store already: what another study made or exported, or a blob."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from m2pt.data.config import DataInfo
from m2pt.models.config import Tokenizer
from m2pt.models.tokens import token_grid
from m2pt.weights.provenance import Origin, Provenance
from orchestrator.config.names import nearest
from orchestrator.config.weights import BlobReference, StudyReference
from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.formats import check_format
from orchestrator.storage.uri import Damaged, Missing, Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import StudyRecord, fold

EXPORT_FORMAT = 1
_LARGEST_BYTES = 16 * 1024 * 1024  # of what describes an export


def referred(
    store: Store, reference: StudyReference | BlobReference, where: str, sha256: str | None = None
) -> tuple[Any, str | None]:
    """The `WholeWeights` that a reference stands for, and their blob; None for an export's.

    Nothing is written. `where` is the key of the file that holds the reference; with `sha256`
    only weights of that digest are taken.

    Raises:
        RequestError: there is nothing of the name, or it has another digest; says what there is.
        StorageError: the store cannot be reached, or what lies there is damaged.
        ValueError: what lies there are no block weights.
    """
    from m2pt.weights.whole import whole_from_bytes

    if isinstance(reference, BlobReference):
        place = _Place(layout.blob(reference.sha256), reference.sha256)
    else:
        place = _made(store, reference, where)
    if sha256 not in (None, place.sha256):
        raise RequestError(
            f"{where}: it stands for weights of sha256 {place.sha256}, not {sha256}; correct the "
            "digest, or name other weights"
        )
    try:
        found = whole_from_bytes(store.get_known(place.key, place.sha256))
    except Missing:
        raise RequestError(
            f"{where}: {store.uri} holds no {place.key}; was it deleted, or is it under another "
            "storage?"
        ) from None
    if place.about is None:
        return found, place.sha256
    modality, grid = _tokens_of(place.about, f"{store.uri}/{place.key}")
    return replace(found, modality=modality, grid=grid), None


def provenance_of(
    store: Store, reference: StudyReference | BlobReference, found: Any, sha256: str | None
) -> dict[str, Any]:
    """Where the weights `found` come from: as the study that has them told, else as far as they
    show. `found` and `sha256` are as `referred` gave them.

    Raises `RequestError` where an export is gone, and `StorageError`.
    """
    if isinstance(reference, BlobReference):
        return _seen(found, f"sha256:{reference.sha256}", reference.sha256)
    via = f"study://{reference.study}/{reference.full_name}"
    record = fold(read_events(store, reference.study))
    if sha256 is None:
        digest = _about_export(store, reference, via)["sha256"]
        return _seen(found, via, digest, _origin_of_export(record, reference, found.modality))
    ready = record.auxiliaries.get(reference.full_name) or record.auxiliaries.get(reference.name)
    if ready is None or ready.provenance is None:
        return _seen(found, via, sha256)
    said = ready.provenance
    return {**said, "uri": f"{via} ({said.get('uri', 'of unknown origin')})"}


def _seen(found: Any, uri: str, sha256: str, origin: Origin | None = None) -> dict[str, Any]:
    """What weights show of themselves, as `Provenance.as_dict` has it."""
    from m2pt.weights.blocks import block_key, depth_of_blocks

    blocks = found.blocks
    hidden, dim = blocks[block_key(0, "mlp.fc1")].shape
    return Provenance(
        uri=uri,
        sha256=sha256,
        layout="timm",
        dim=dim,
        depth=depth_of_blocks(blocks),
        hidden=hidden,
        origin=origin or Origin(modality=found.modality),
        norm="post" if found.post_norm else None,
    ).as_dict()


def _origin_of_export(record: StudyRecord, reference: StudyReference, modality: Any) -> Origin:
    """A fused model's: what its trial borrowed and started from had a part in it, and binds it."""
    trial = record.trials[reference.full_name]  # `referred` found it
    names = (*trial.auxiliary.split("+"), "target")
    made = [record.auxiliaries[name] for name in names if name in record.auxiliaries]
    said = [one.provenance for one in made if one.provenance is not None]
    others = {str(m) for one in said for m in (one.get("modality"), *one.get("involves", ())) if m}
    licences = {str(one["licence"]) for one in said if one.get("licence")}
    return Origin(
        modality=modality,
        supervised=True,
        lineage=f"trial {trial.trial} of study {reference.study} (auxiliary: {trial.auxiliary})",
        involves=tuple(sorted(others - {modality})),
        licence=" and ".join(sorted(licences)) or None,
    )


class _Place(NamedTuple):
    """Where weights lie. `about`: of an export, what `model.json` says; None: it is a blob."""

    key: str
    sha256: str
    about: dict[str, Any] | None = None


def _made(store: Store, reference: StudyReference, where: str) -> _Place:
    """Of what a study made."""
    record = _record(store, reference, where)
    ready = _ready(record, reference)
    if ready is not None:
        return _Place(layout.blob(ready), ready)
    trial = record.trials.get(reference.full_name)
    if trial is None:
        raise RequestError(f"{where}: {_no_such(store, record, reference)}")
    if trial.exported is None:
        raise RequestError(
            f"{where}: trial {trial.trial} of study {reference.study!r} was not exported"
            + (nearest(trial.trial, _exported(record)) or "; nor was another one")
        )
    key = layout.export(reference.study, trial.trial, "model.safetensors")
    about = _about_export(store, reference, where)
    return _Place(key, about["sha256"], about)


def _record(store: Store, reference: StudyReference, where: str) -> StudyRecord:
    events = read_events(store, reference.study)
    if events:
        return fold(events)
    names = {layout.study_of(entry.key) for entry in store.list(layout.STUDIES)}
    known = sorted(name for name in names if name is not None)
    raise RequestError(
        f"{where}: no study {reference.study!r} lies under {store.uri}"
        + (nearest(reference.study, known) or "; there is none")
    )


def _ready(record: StudyRecord, reference: StudyReference) -> str | None:
    """The blob of an auxiliary that the study has made."""
    found = record.auxiliaries.get(reference.full_name)
    if found is None and reference.epoch is not None:
        last = record.auxiliaries.get(reference.name)
        found = last if last is not None and last.epoch == reference.epoch else None
    return None if found is None else found.sha256


def _no_such(store: Store, record: StudyRecord, reference: StudyReference) -> str:
    known = [*record.auxiliaries, *_exported(record)]
    what = f"study {reference.study!r} under {store.uri}"
    if reference.name in record.pretraining and reference.name not in record.auxiliaries:
        return f"{what} has not yet made {reference.name!r}: let it go on, and try again then"
    if not known:
        return f"{what} has made no weights; run `orchestrator pretrain` on its file first"
    return f"{what} has made no {reference.full_name!r}{nearest(reference.full_name, known)}"


def _exported(record: StudyRecord) -> list[str]:
    return [name for name, trial in record.trials.items() if trial.exported is not None]


def _about_export(store: Store, reference: StudyReference, where: str) -> dict[str, Any]:
    """What `model.json` says of the weights beside it; `sha256` at least."""
    key = layout.export(reference.study, reference.name, "model.json")
    shown = f"{store.uri}/{key}"
    try:
        said: dict[str, Any] = json.loads(store.get_within(key, _LARGEST_BYTES))
        check_format(said["format"], EXPORT_FORMAT, shown)
        return said | {"sha256": str(said["sha256"])}
    except Missing:
        raise RequestError(f"{where}: {shown} is not there any more; export it again") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(f"{shown} does not describe an export: {error}") from error


def _tokens_of(about: Mapping[str, Any], shown: str) -> tuple[str | None, tuple[int, ...] | None]:
    """The modality of an exported model's samples, and the grid of its tokens."""
    if "data" not in about or "model" not in about:
        return None, None
    try:
        data, tokenizer = about["data"], about["model"]["tokenizer"]
        info = DataInfo(data["modality"], tuple(data["shape"]), 1, ("any",), "")
        grid = None if info.modality == "point" else token_grid(Tokenizer(**tokenizer), info)
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(f"{shown}: model.json does not describe its tokens: {error}") from error
    return info.modality, grid

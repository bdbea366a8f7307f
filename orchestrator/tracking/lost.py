"""Events that never reached the store, made up for from what checkpoints say."""

from collections.abc import Iterator
from typing import Any

from orchestrator.storage import layout
from orchestrator.storage.checkpoints import Accepted, Manifest, manifest_keys, read_manifest
from orchestrator.storage.uri import Damaged, Missing, Store
from orchestrator.tracking.record import StudyRecord


def from_manifests(
    store: Store, study: str, record: StudyRecord, accepted: Accepted
) -> Iterator[dict[str, Any]]:
    """Events of trials that have not ended, as their newest accepted manifests tell them.

    Many of them are known; whoever appends them has to leave out what is no news. They carry
    `rebuilt`. A trial whose plan is known neither from `record` nor from its manifest is left out:
    it will be planned again, and then find its checkpoint.
    """
    newest: dict[str, Manifest] = {}
    for key in filter(accepted, manifest_keys(store, study)):
        at = layout.parse_manifest(key)
        if at is None or ((trial := record.trials.get(at.trial)) is not None and trial.over):
            continue
        try:
            manifest = read_manifest(store, key)
        except (Missing, Damaged):
            continue
        best = newest.get(at.trial)
        if best is None or (best.step, best.epoch) < (manifest.step, manifest.epoch):
            newest[at.trial] = manifest
    for trial_id, manifest in newest.items():
        if trial_id in record.trials or manifest.meta.get("planned"):
            yield from _events_of(manifest)


def _events_of(manifest: Manifest) -> Iterator[dict[str, Any]]:
    meta, marks = manifest.meta, {"trial": manifest.trial, "rebuilt": True}
    if meta.get("planned"):
        yield {**meta["planned"], "kind": "planned", **marks}
    for entry in meta.get("epochs", ()):
        yield {**entry, "kind": "epoch", **marks}
    yield {"kind": "checkpoint", "epoch": manifest.step, "key": manifest.key, **marks}
    if manifest.final:
        yield {"kind": "finished", **marks}

"""From what lies in the store back to a trial: its configuration, weights and final state.

`inputs` is the JSON value that an assignment carries and every manifest keeps: the resolved
experiment, and the digests of the weights that it borrows (`auxiliaries`) or starts from
(`target`). A checkpoint so needs nothing but its store to be rebuilt.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.pathway.controls import control_weights
from m2pt.training.state import State, from_bytes
from m2pt.weights.files import load_blocks
from m2pt.weights.whole import load_whole
from orchestrator import environment
from orchestrator.config.io import from_dict
from orchestrator.errors import RequestError
from orchestrator.promotion.export import Export, Identity, Trained, export_model
from orchestrator.storage import blobs
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.storage.uri import Store

Json = dict[str, Any]
STATE_FILE = "state.safetensors"


def inputs_from(store: Store, inputs: Json, state: State | None = None) -> Trained:
    """What a trial is made of; without `state`, one that has not begun. Raises `StorageError`."""
    config = from_dict(inputs["experiment"]).training_config()
    auxiliaries = {
        name: _auxiliary(store, source, config.seed)
        for name, source in inputs["auxiliaries"].items()
    }
    start = inputs["target"]
    target = None if start is None else load_whole(_fetched(store, start))
    return Trained(config, state or State({}, {}), auxiliaries, target)


def final_state(checkpoints: TrialCheckpoints) -> tuple[Json, State]:
    """The newest sound checkpoint of a trial: its manifest's `meta`, and its state.

    Raises `RequestError` where there is none.
    """
    found = checkpoints.load_latest()
    if found is None:
        raise RequestError(
            f"no sound checkpoint is left of trial {checkpoints.trial}: choose one whose state was"
            " kept (checkpoints.keep_trials says of how many), or train it again in another study"
        )
    manifest, files = found
    return dict(manifest.meta), from_bytes(files[STATE_FILE])


def export_stored(checkpoints: TrialCheckpoints) -> Export:
    """Fuse a trial's newest state and let it through the gate, on validation samples.

    Raises `PromotionError` where a rule is broken, `RequestError` where no state was kept.
    """
    meta, state = final_state(checkpoints)
    trained = with_record(inputs_from(checkpoints.store, meta["inputs"], state), meta)
    identity = Identity(checkpoints.trial, meta["planned"]["arm"], checkpoints.study)
    return export_model(trained, dataset_of(trained.config.data), identity)


def with_record(trained: Trained, meta: Json) -> Trained:
    """`trained` with what its manifest says that it recorded after the epoch of its state."""
    epoch = trained.state.meta.get("epoch")
    told = [entry for entry in meta.get("epochs", ()) if entry["epoch"] == epoch]
    recorded = {name: float(v) for name, v in (told[-1]["metrics"] if told else {}).items()}
    return replace(trained, recorded=recorded)


@lru_cache(maxsize=2)
def dataset_of(config: DataConfig) -> Dataset:
    """Prepared once for all trials of this process that read the same data; never changed."""
    return load(config)


def _auxiliary(store: Store, source: Json, seed: int) -> Mapping[str, Tensor]:
    """The blocks of an auxiliary: a blob's, or a control's drawn like a blob's."""
    blocks = _blob(store, source["sha256"])
    for kind in source["controls"]:
        blocks = control_weights(kind, blocks, seed)
    return blocks


def _blob(store: Store, sha256: str) -> Mapping[str, Tensor]:
    blocks: Mapping[str, Tensor] = load_blocks(_fetched(store, sha256))
    return blocks


def _fetched(store: Store, sha256: str) -> Path:
    return blobs.fetch(store, sha256, environment.cache_folder() / "blobs")

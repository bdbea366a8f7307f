"""What a gang can be asked to do: train a trial, pre-train an auxiliary, settle a trial.

An assignment is JSON and names everything by content: the resolved experiment, digests of weights,
the storage prefix and the fencing epoch. Nothing else passes from the driver to a gang.
"""

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import ray
from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.pathway.controls import control_weights
from m2pt.pretrain.mae import MaskedAutoencoding
from m2pt.training.evaluate import evaluate
from m2pt.training.loop import Training
from m2pt.training.session import drive
from m2pt.training.state import State, from_bytes
from m2pt.training.world import World
from m2pt.weights.load import blocks_to_bytes, load_blocks
from orchestrator import environment
from orchestrator.config.io import from_dict
from orchestrator.promotion.export import Identity, Trained, export_model, write
from orchestrator.ray_backend.worker import STATE_FILE, Gang, GangSession
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.uri import Store

Json = dict[str, Any]
Blocks = Mapping[str, Tensor]


def perform(gang: Gang, turn: Json, call: Json) -> Json:
    """Carry out one assignment; the outcome's "kind" is "finished" or "stopped".

    Every rank calls this; only what rank 0 returns is handed back.
    """
    return KINDS[turn["assignment"]["kind"]](gang, turn, call)


def train(gang: Gang, turn: Json, call: Json) -> Json:
    """Train a trial from where its newest checkpoint stands, reporting every epoch."""
    assignment = turn["assignment"]
    session = GangSession(
        gang=gang,
        call=call,
        checkpoints=_checkpoints(assignment),
        reported=turn["reported"],
        rungs=frozenset(assignment["rungs"]),
        every_epochs=assignment["every_epochs"],
        planned=assignment["planned"],
    )
    trial = _inputs(assignment, None)
    training = Training(
        trial.config,
        _dataset(trial.config.data),
        trial.auxiliaries,
        target_weights=trial.target_weights,
        world=gang.world,
    )
    return {"kind": drive(training, session)}


def pretrain(gang: Gang, turn: Json, call: Json) -> Json:
    """Make an auxiliary by masked autoencoding on rank 0, and keep its blocks as a blob."""
    if gang.world.rank != 0:
        return {}
    assignment = turn["assignment"]
    store = Store.open(assignment["storage"])
    began = time.perf_counter()
    experiment = from_dict(assignment["experiment"])
    name = assignment["source"]
    source = experiment.target if name == "target" else experiment.auxiliaries[name]
    assert source is not None
    assert source.pretrain is not None  # the driver asks for nothing else
    config = source.pretrain
    encoder = MaskedAutoencoding(config, experiment.model)
    metrics: dict[str, float] = {}
    for number, report in enumerate(encoder.epochs()):
        metrics = {"pretrain/loss": report.loss, "pretrain/epochs": float(report.epoch)}
        value = {"epoch": report.epoch, "epochs": config.epochs, "metrics": metrics}
        if ray.get(gang.mailbox.report.remote(call, number, value, False)) != "go":
            return {"kind": "stopped"}
    sha256 = blobs.put(store, blocks_to_bytes(encoder.block_weights()))
    seconds = time.perf_counter() - began
    return {"kind": "finished", "sha256": sha256, "seconds": seconds, "metrics": metrics}


def settle(gang: Gang, turn: Json, call: Json) -> Json:
    """Read the test split once with a trial's final state; fuse, prove and export if asked.

    Rank 0 does it by itself: the figures then do not depend on how many workers there are.
    """
    del call
    if gang.world.rank != 0:
        return {}
    assignment = turn["assignment"]
    found = _checkpoints(assignment).load_latest()
    if found is None:
        return {"kind": "failed", "error": "no sound checkpoint is left of this trial"}
    trained = _inputs(assignment, from_bytes(found[1][STATE_FILE]))
    dataset, config = _dataset(trained.config.data), trained.config
    world = World(device=gang.world.device)
    training = Training(
        config, dataset, trained.auxiliaries, target_weights=trained.target_weights, world=world
    )
    training.restore(trained.state)
    test = evaluate(
        training.model, dataset.test, config.recipe.batch_size, config.numerics, world=world
    )
    metrics = {f"test/{name}": value for name, value in test.items()}
    outcome: Json = {"kind": "finished", "metrics": metrics}
    return outcome | _export(assignment, trained, metrics) if assignment["export"] else outcome


def _export(assignment: Json, trained: Trained, metrics: dict[str, float]) -> Json:
    study, trial = assignment["study"], assignment["trial"]
    identity = Identity(trial, assignment["planned"]["arm"], study, metrics)
    export = export_model(trained, _dataset(trained.config.data), identity, prove_on_test=True)
    store = Store.open(assignment["storage"])
    write(export, lambda name, data: store.put(layout.export(study, trial, name), data))
    return {"key": layout.export(study, trial), "proof": export.about["proof"]}


KINDS: dict[str, Callable[[Gang, Json, Json], Json]] = {
    "train": train,
    "pretrain": pretrain,
    "settle": settle,
}


def _checkpoints(assignment: Json) -> TrialCheckpoints:
    accepted = Accepted(assignment["fence"], frozenset(assignment["accepted"]))
    store = Store.open(assignment["storage"])
    return TrialCheckpoints(store, assignment["study"], assignment["trial"], accepted)


def _inputs(assignment: Json, state: State | None) -> Trained:
    """The trial's configuration and the weights that it borrows or starts from."""
    config = from_dict(assignment["experiment"]).training_config()
    store = Store.open(assignment["storage"])
    auxiliaries = {
        name: _auxiliary(store, source, config.seed)
        for name, source in assignment["auxiliaries"].items()
    }
    target = assignment["target"]
    weights = None if target is None else _blob(store, target)
    return Trained(config, state or State({}, {}), auxiliaries, weights)


def _auxiliary(store: Store, source: Json, seed: int) -> Blocks:
    """The blocks of an auxiliary: a blob's, or a control's drawn like a blob's."""
    blocks = _blob(store, source["sha256"])
    for kind in source["controls"]:
        blocks = control_weights(kind, blocks, seed)
    return blocks


def _blob(store: Store, sha256: str) -> Blocks:
    return load_blocks(blobs.fetch(store, sha256, environment.cache_folder() / "blobs"))


@lru_cache(maxsize=2)
def _dataset(config: DataConfig) -> Dataset:
    """Prepared once for all trials of this process that read the same data; never changed."""
    return load(config)

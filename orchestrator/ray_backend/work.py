"""What a gang can be asked to do: train a trial, pre-train an auxiliary, settle a trial.

An assignment is JSON and names everything by content: the resolved experiment, digests of weights,
the storage prefix and the fencing epoch. Nothing else passes from the driver to a gang.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from m2pt.data.files import waiting_for
from m2pt.pretrain.mae import MaskedAutoencoding
from m2pt.training.evaluate import evaluate
from m2pt.training.loop import Training
from m2pt.training.session import drive
from m2pt.training.world import World
from m2pt.weights.files import blocks_to_bytes
from m2pt.weights.whole import whole_to_bytes
from orchestrator.config.io import from_dict
from orchestrator.promotion.cost import cost_of
from orchestrator.promotion.export import Identity, PromotionError, Trained, export_model, write
from orchestrator.promotion.stored import dataset_of, final_state, inputs_from, with_record
from orchestrator.ray_backend.pretraining import PretrainSession
from orchestrator.ray_backend.reporting import GangSession, StoppedHere
from orchestrator.ray_backend.worker import Gang
from orchestrator.storage import layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.patient import PatientStore
from orchestrator.storage.uri import Store
from orchestrator.study.retention import TrialRetention

Json = dict[str, Any]


def perform(gang: Gang, turn: Json, call: Json) -> Json:
    """Carry out one assignment; the outcome's "kind" is "finished" or "stopped".

    Every rank calls this; only what rank 0 returns is handed back.
    """
    assignment = turn["assignment"]
    with waiting_for(assignment["storage_seconds"]):
        return KINDS[assignment["kind"]](gang, turn, call)


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
        about={key: assignment[key] for key in ("planned", "inputs")},
        retention=TrialRetention(**assignment["retention"]),
    )
    trial = inputs_from(_store(assignment), assignment["inputs"])
    try:
        with session:
            training = _training(trial, gang.world)
            if training.started is not None:  # of this trial's own model, in every manifest
                session.about["started"] = training.started.summary()
            return {"kind": drive(training, session)}
    except StoppedHere:
        return {"kind": "stopped"}


def pretrain(gang: Gang, turn: Json, call: Json) -> Json:
    """Make an auxiliary by masked autoencoding, from where its newest checkpoint stands; keep its
    blocks, or all that a target starts from, as blobs at the epochs asked for."""
    assignment = turn["assignment"]
    experiment, name = from_dict(assignment["experiment"]), assignment["source"]
    source = experiment.target if name == "target" else experiment.auxiliaries[name]
    assert source is not None
    assert source.pretrain is not None  # the driver asks for nothing else
    run = MaskedAutoencoding(
        source.pretrain,
        experiment.model,
        numerics=experiment.training_config().numerics,
        world=gang.world,
    )
    session = PretrainSession(
        gang=gang,
        call=call,
        checkpoints=_checkpoints(assignment),
        reported=turn["reported"],
        rungs=frozenset(),
        every_epochs=assignment["every_epochs"],
        about={"pretraining": name},
        retention=TrialRetention(assignment["keep_last"]),
        keep=frozenset(assignment["keep"]),
        weights=lambda: (
            whole_to_bytes(run.whole_weights())
            if assignment.get("whole")
            else blocks_to_bytes(run.block_weights())
        ),
    )
    with suppress(StoppedHere), session:
        drive(run, session)
    return session.outcome()


def settle(gang: Gang, turn: Json, call: Json) -> Json:
    """Read the test split once with a trial's final state; if asked, measure what it costs in use,
    and fuse, prove and export.

    Rank 0 does it by itself: the figures then do not depend on how many workers there are. They
    stand, whatever the gate says of the export: `refused` tells it.
    """
    del call
    if gang.world.rank != 0:
        return {}
    assignment = turn["assignment"]
    meta, state = final_state(_checkpoints(assignment))
    trained = with_record(inputs_from(_store(assignment), assignment["inputs"], state), meta)
    config, world = trained.config, gang.alone().world
    training = _training(trained, world)
    training.restore(state)
    training.settle()
    test = evaluate(
        training.model,
        dataset_of(config.data).test,
        config.recipe.batch_size,
        config.numerics,
        world=world,
    )
    metrics = {f"test/{name}": value for name, value in test.items()}
    if assignment["costed"]:
        dataset = dataset_of(config.data)
        metrics |= cost_of(training.model, config, dataset, device=world.device)
    outcome: Json = {"kind": "finished", "metrics": metrics}
    if not assignment["export"]:
        return outcome
    try:
        return outcome | _export(assignment, trained, metrics)
    except PromotionError as error:
        return outcome | {"refused": str(error)}


KINDS: dict[str, Callable[[Gang, Json, Json], Json]] = {
    "train": train,
    "pretrain": pretrain,
    "settle": settle,
}


def _training(trial: Trained, world: World) -> Training:
    return Training(
        trial.config,
        dataset_of(trial.config.data),
        trial.auxiliaries,
        target_weights=trial.target_weights,
        world=world,
    )


def _export(assignment: Json, trained: Trained, metrics: dict[str, float]) -> Json:
    study, trial = assignment["study"], assignment["trial"]
    identity = Identity(trial, assignment["planned"]["arm"], study, metrics)
    export = export_model(trained, dataset_of(trained.config.data), identity, prove_on_test=True)
    store = _store(assignment)
    write(export, lambda name, data: store.put(layout.export(study, trial, name), data))
    return {"key": layout.export(study, trial), "proof": export.about["proof"]}


def _store(assignment: Json) -> Store:
    """The study's store, which may be away for a while."""
    return PatientStore(Store.open(assignment["storage"]), assignment["storage_seconds"])


def _checkpoints(assignment: Json) -> TrialCheckpoints:
    accepted = Accepted(assignment["fence"], frozenset(assignment["accepted"]))
    store = _store(assignment)
    return TrialCheckpoints(store, assignment["study"], assignment["trial"], accepted)

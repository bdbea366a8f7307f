"""A small study as it lies in a store and in MLflow once it is finished, made without Ray."""

from pathlib import Path
from typing import Any

from m2pt.data.config import DataInfo
from m2pt.data.load import load
from m2pt.models.build import build_model
from m2pt.training.loop import Training
from m2pt.training.state import to_bytes
from m2pt.weights.files import blocks_to_bytes
from orchestrator.conduct.assign import Assigner
from orchestrator.conduct.ownership import snapshot
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict, experiment_sha256, parse_experiment
from orchestrator.promotion.stored import STATE_FILE, inputs_from
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.study.agenda import Agenda
from orchestrator.study.identity import Digests
from orchestrator.study.trial import TrialPlan
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.mlflow import Tracker
from orchestrator.tracking.record import StudyRecord, fold

NAME = "stored"
STUDY = """
name: stored
data: {source: digits, limit: 64}
model: {width: 16, depth: 1, heads: 2, tokenizer: {patch: 4}}
auxiliaries: {audio: {pretrain: {data: {source: tones}}}}
pathway: {auxiliary: audio, scale: {init: 0.1}}
training: {epochs: 2, batch_size: 32, warmup_epochs: 0}
search:
  trials: 1
  seeds: 2
  confirm: 0
  scheduler: {kind: none}
  space: {pathway.scale.init: {grid: [0.1]}}
"""


def stored_study(folder: Path, tracking: str | None = None) -> StudyRecord:
    """Train a baseline and one arm in this process, and leave what a driver leaves.

    The store is `folder`, MLflow `folder`/mlflow.db unless `tracking` is another.
    """
    store = Store.open(str(folder))
    experiment = parse_experiment(STUDY, "stored.yaml", [f"storage={folder}"])
    info = load(experiment.data).info
    blob = blobs.put(store, _auxiliary(experiment, info))
    digests = Digests(info.digest, None, {"audio": blob})
    store.put(layout.experiment(NAME), snapshot(experiment))
    tracker = Tracker(tracking or f"sqlite:///{folder / 'mlflow.db'}", NAME, NAME)
    with (
        Lease.acquire(store, NAME) as lease,
        Journal.open(store, NAME, lease, spool=folder / "spool") as journal,
    ):
        journal.subscribe(tracker.observe, replay=True)
        _begin(journal, experiment, blob)
        accepted = Accepted(lease.epoch)
        assigner = Assigner(NAME, str(folder), accepted, digests)
        agenda, record = Agenda(experiment, digests), StudyRecord()
        while isinstance(plan := agenda.next(record), TrialPlan):
            _train(plan, journal, assigner, store)
            record = fold(journal.events)
        journal.append({"kind": "study_finished", "verdict": "see the report"})
        assert tracker.close(60)
    return record


def _begin(journal: Journal, experiment: Experiment, blob: str) -> None:
    told = {"experiment": as_dict(experiment), "experiment_sha256": experiment_sha256(experiment)}
    journal.append({"kind": "study_started", **told})
    ready = {"seconds": 1.0, "metrics": {"pretrain/loss": 0.5}}
    journal.append({"kind": "auxiliary_ready", "name": "audio", "sha256": blob, **ready})


def _auxiliary(experiment: Experiment, info: DataInfo) -> bytes:
    """Blocks that nobody trained."""
    return blocks_to_bytes(build_model(experiment.model, info, seed=11))


def _train(plan: TrialPlan, journal: Journal, assigner: Assigner, store: Store) -> None:
    told: dict[str, Any] = {
        k: v for k, v in assigner.train(plan).items() if k in ("planned", "inputs")
    }
    trained = inputs_from(store, told["inputs"])
    training = Training(trained.config, load(trained.config.data), trained.auxiliaries)
    journal.append(told["planned"])
    journal.append({"kind": "started", "trial": plan.trial, "gang": "gang-0", "attempt": 1})
    epochs = []
    for report in training.epochs():
        one = {name: getattr(report, name) for name in ("epoch", "epochs", "metrics", "scales")}
        epochs.append(one | {"seconds": dict(report.seconds)})
        journal.append({"kind": "epoch", "trial": plan.trial, **epochs[-1]})
    checkpoints = TrialCheckpoints(store, NAME, plan.trial, assigner.accepted)
    meta = {"epochs": epochs, "final": True, **told}
    kept = checkpoints.save(len(epochs), {STATE_FILE: to_bytes(training.capture())}, meta)
    at = {"epoch": len(epochs), "key": kept.key}
    journal.append({"kind": "checkpoint", "trial": plan.trial, **at})
    journal.append({"kind": "finished", "trial": plan.trial})

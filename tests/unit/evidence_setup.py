"""A made-up study, as events: what a real one of this size looks like when it is over."""

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.tracking.record import StudyRecord, fold

Event = dict[str, Any]

EPOCHS = 6
START = 1_790_000_000.0
LEVELS = {"none": 0.928, "audio": 0.946, "point": 0.937, "video": 0.925, "random": 0.929}
SHORT = {(): "all", ("fc1", "fc2"): "mlp", ("qkv", "proj"): "attention"}


def experiment(**changes: Any) -> Experiment:
    """The experiment that the study below carries out."""
    pretrain = {"epochs": 5}
    return Experiment.model_validate(
        {
            "name": "digits-from-elsewhere",
            "data": {"source": "digits"},
            "auxiliaries": {
                "audio": {"pretrain": {"data": {"source": "tones"}, **pretrain}},
                "point": {"pretrain": {"data": {"source": "shapes"}, **pretrain}},
                "video": {"pretrain": {"data": {"source": "clips"}, **pretrain}},
                "random": {"control": "random", "like": "audio"},
            },
            "training": {"epochs": EPOCHS},
            "search": {
                "trials": 8,
                "space": {
                    "pathway.auxiliary": {"grid": ["audio", "point", "video", "random"]},
                    "pathway.scale.init": {"choice": [0.0, 0.1]},
                    "training.learning_rate": {
                        "loguniform": [3e-4, 3e-3],
                        "when": {"pathway.auxiliary": "audio"},
                    },
                },
            },
            **changes,
        }
    )


@dataclass(frozen=True)
class Planned:
    """One trial to make up: how long it runs and how well it does."""

    stage: str
    auxiliary: str
    seed: int = 0
    epochs: int = EPOCHS
    init: float = 0.0
    gain: float = 0.0
    fails: bool = False

    @property
    def arm(self) -> str:
        return digest(f"{self.auxiliary} {self.init}")[:12]

    @property
    def trial(self) -> str:
        return digest(f"{self.auxiliary} {self.init} {self.seed}")[:12]

    @property
    def label(self) -> str:
        if self.auxiliary == "none":
            return "none (baseline)"
        return f"{self.auxiliary} · all linears · λ learned from {self.init:g}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def search_stage() -> list[Planned]:
    """Two baseline seeds are still to come when this much is done."""
    return [
        Planned("baseline", "none"),
        Planned("search", "audio"),
        Planned("search", "point", epochs=3),
        Planned("search", "video", epochs=1),
        Planned("search", "random"),
        Planned("search", "audio", init=0.1, epochs=3, gain=-0.01),
        Planned("search", "point", init=0.1, gain=0.004),
        Planned("search", "video", init=0.1, fails=True, epochs=2),
        Planned("search", "random", init=0.1, epochs=1),
    ]


def rest() -> list[Planned]:
    """The other seeds of the baseline, the confirmed arm, and its control."""
    return [
        *(Planned("baseline", "none", seed) for seed in (1, 2)),
        *(Planned("confirm", "audio", seed) for seed in (1, 2)),
        *(Planned("control", "random~audio", seed) for seed in (0, 1, 2)),
    ]


def finished_study() -> StudyRecord:
    """Everything done, tested and exported; one gang was lost on the way."""
    return fold(
        [
            *opening(),
            *events_of(search_stage()),
            {
                "kind": "gang_lost",
                "gang": "gang-0",
                "attempt": 1,
                "why": "worker 1 of 2 died",
                "time": START + 70,
            },
            *events_of(rest(), START + 80),
            *read_on_test(),
            exported(Planned("confirm", "audio").trial),
            {"kind": "study_finished", "verdict": "see the report", "time": START + 214},
        ]
    )


def half_done_study() -> StudyRecord:
    """Stopped by hand while the fourth search trial ran; nothing confirmed, nothing tested."""
    events = list(events_of(search_stage()[:4]))
    last = max(i for i, event in enumerate(events) if event["kind"] in ("finished", "stopped"))
    stop = {"kind": "study_stopped", "why": "stop was asked for", "time": START + 60}
    return fold([*opening(), *events[:last], stop])


def opening() -> Iterator[Event]:
    """Start, auxiliaries, gang."""
    yield {
        "kind": "study_started",
        "experiment_sha256": digest("experiment"),
        "experiment": {},
        "time": START,
    }
    for number, name in enumerate(("audio", "point", "video")):
        yield {
            "kind": "auxiliary_ready",
            "name": name,
            "sha256": digest(name),
            "seconds": 3.0 + number,
            "metrics": {"pretrain/loss": 0.41 - 0.05 * number},
            "time": START + 4 * (number + 1),
        }
    yield {"kind": "gang_opened", "gang": "gang-0", "attempt": 1, "workers": [], "time": START + 12}


def events_of(trials: list[Planned], at: float = START + 14) -> Iterator[Event]:
    """Plan, epochs and end of each trial, one after the other."""
    for planned in trials:
        values: dict[str, Any] = {}
        if planned.auxiliary != "none":
            values["pathway.auxiliary"] = planned.auxiliary
            values["pathway.scale.init"] = planned.init
        if planned.auxiliary.endswith("audio"):
            values["training.learning_rate"] = 0.001
        yield {
            "kind": "planned",
            "trial": planned.trial,
            "arm": planned.arm,
            "label": planned.label,
            "stage": planned.stage,
            "seed": planned.seed,
            "values": values,
            "auxiliary": planned.auxiliary,
            "coverage": "all",
            "time": at,
        }
        yield {
            "kind": "started",
            "trial": planned.trial,
            "gang": "gang-0",
            "attempt": 1,
            "time": at,
        }
        yield from epochs_of(planned, at)
        yield {"trial": planned.trial, "time": at + 1.2 * planned.epochs, **ending(planned)}
        at += 1.2 * planned.epochs + 0.1


def ending(planned: Planned) -> Event:
    if planned.fails:
        error = "FloatingPointError: train/loss is not finite at epoch 3, step 12"
        return {"kind": "failed", "error": error, "attempts": 3}
    if planned.epochs < EPOCHS:
        return {"kind": "stopped", "why": f"asha: below the cut at epoch {planned.epochs}"}
    return {"kind": "finished"}


def epochs_of(planned: Planned, at: float) -> Iterator[Event]:
    draw = random.Random(planned.trial)
    for epoch in range(1, planned.epochs + 1):
        level = value_of(planned, epoch) + draw.gauss(0, 0.002)
        yield {
            "kind": "epoch",
            "trial": planned.trial,
            "epoch": epoch,
            "epochs": EPOCHS,
            "metrics": {"val/accuracy": level, "val/loss": 2 * (1 - level), "train/loss": 0.4},
            "scales": scales_of(planned, epoch, draw),
            "seconds": {"train": 1.0, "evaluate": 0.1},
            "time": at + 1.2 * epoch,
        }


def value_of(planned: Planned, epoch: int = EPOCHS) -> float:
    """Validation accuracy without noise."""
    top = LEVELS[planned.auxiliary.partition("~")[0]] + planned.gain + 0.003 * planned.seed
    return top - 0.5 * math.exp(-1.1 * epoch)


def scales_of(planned: Planned, epoch: int, draw: random.Random) -> dict[str, float]:
    if planned.auxiliary == "none":
        return {}
    return {
        f"lambda/{block}.{linear}": planned.init
        + (block - 1.2) * 0.006 * epoch * (1 + 0.3 * number)
        + draw.gauss(0, 0.001)
        for block in range(4)
        for number, linear in enumerate(("qkv", "proj", "fc1", "fc2"))
    }


def read_on_test() -> Iterator[Event]:
    """The test split, read once: baseline, arm and control at three seeds."""
    found = {
        "none": (0.9250, 0.9222, 0.9278),
        "audio": (0.9417, 0.9444, 0.9417),
        "random~audio": (0.9278, 0.9222, 0.9306),
    }
    for auxiliary, values in found.items():
        for seed, value in enumerate(values):
            trial = Planned("confirm", auxiliary, seed).trial
            metrics = {"test/accuracy": value, "test/loss": 2 * (1 - value)}
            yield {"kind": "tested", "trial": trial, "metrics": metrics, "time": START + 210}


def exported(trial: str) -> Event:
    proof = {
        "keys": 54,
        "keys_equal": True,
        "parameters_trained": 401_874,
        "parameters_exported": 204_234,
        "parameters_plain": 204_234,
        "probe": agreement(256),
        "test": agreement(360),
        "tolerance": 1e-5,
    }
    key = f"studies/digits-from-elsewhere/exports/{trial}/model.safetensors"
    return {"kind": "exported", "trial": trial, "key": key, "proof": proof, "time": START + 212}


def agreement(samples: int) -> dict[str, float]:
    return {
        "samples": samples,
        "relative_difference": 3.1e-7,
        "disagreements": 0,
        "ties": 0,
        "accuracy_trained": 0.9417,
        "accuracy_exported": 0.9417,
    }

"""What the driver hands to a gang for one trial: a JSON value that names everything by content."""

from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict
from orchestrator.config.upkeep import Failures
from orchestrator.storage.checkpoints import Accepted
from orchestrator.study.identity import Digests
from orchestrator.study.plan import rungs
from orchestrator.study.retention import retention_of
from orchestrator.study.trial import TrialPlan

Json = dict[str, Any]


@dataclass(frozen=True)
class Assigner:
    """Makes assignments for the trials of one study under one fencing epoch."""

    study: str
    storage: str
    accepted: Accepted
    digests: Digests

    def train(self, plan: TrialPlan) -> Json:
        """Train this trial, from its newest accepted checkpoint if there is one."""
        experiment = plan.experiment
        search, epochs = experiment.search, experiment.training.epochs
        searched = plan.stage == "search"
        return self._of(plan) | {
            "kind": "train",
            "rungs": list(rungs(search.scheduler, epochs)) if searched else [],
            "every_epochs": experiment.checkpoints.every_epochs,
            "retention": asdict(retention_of(experiment)),
        }

    def settle(self, plan: TrialPlan, *, export: bool, costed: bool = False) -> Json:
        """Read the test split with this trial's final state; `export` also fuses and proves, and
        `costed` measures what it costs in use."""
        return self._of(plan) | {"kind": "settle", "export": export, "costed": costed}

    def _of(self, plan: TrialPlan) -> Json:
        return {
            "storage": self.storage,
            "study": self.study,
            "trial": plan.trial,
            **patience(plan.experiment.failures),
            "fence": self.accepted.epoch,
            "accepted": sorted(m for m in self.accepted.manifests if f"/{plan.trial}/" in m),
            "planned": planned_event(plan),
            "inputs": {
                "experiment": as_dict(plan.experiment),
                "auxiliaries": {
                    name: self._auxiliary(plan.experiment, name)
                    for name in plan.experiment.borrowed
                },
                "target": self.digests.target,
            },
        }

    def _auxiliary(self, experiment: Experiment, name: str) -> Json:
        """The blob at the root of a chain of controls, and the controls from there outward."""
        controls: list[str] = []
        while (source := experiment.source_of(name)).control is not None:
            controls.insert(0, source.control)
            assert source.like is not None  # the schema asks for it beside control
            name = source.like
        return {"sha256": self.digests.auxiliaries[name], "controls": controls}


def patience(failures: Failures) -> Json:
    """What a gang has to know of failures: how often to try again, and how long to wait."""
    hang = failures.hang_minutes
    return {
        "retries": failures.retries.model_dump(),
        "hang_seconds": None if hang is None else 60.0 * hang,
        "storage_seconds": 60.0 * failures.storage_minutes,
    }


def planned_event(plan: TrialPlan) -> Json:
    """The journal's `planned` event of a trial."""
    return {
        "kind": "planned",
        "trial": plan.trial,
        "arm": plan.arm,
        "label": plan.label,
        "stage": plan.stage,
        "seed": plan.seed,
        "values": dict(plan.values),
        "auxiliary": plan.auxiliary,
        "coverage": plan.coverage,
    }

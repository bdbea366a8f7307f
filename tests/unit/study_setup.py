"""Experiments and records for the tests of config and study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.study.agenda import Agenda, Done
from orchestrator.study.identity import Digests
from orchestrator.study.trial import TrialPlan

BASE = """\
name: sounds-into-digits
data: {source: digits}
auxiliaries:
  audio: {pretrain: {data: {source: tones}}}
  shape: {pretrain: {data: {source: shapes}}}
  shuffled: {control: permuted, like: audio}
pathway: {auxiliary: audio}
"""
DIGESTS = Digests("d1", None, {"audio": "a1", "shape": "s1"})


def experiment(*overrides: str, text: str = BASE) -> Experiment:
    """The base experiment with overrides."""
    return parse_experiment(text, "exp.yaml", overrides)


class Epoch(NamedTuple):
    """One completed epoch."""

    epoch: int
    metrics: dict[str, float]
    scales: Mapping[str, float] = {}


@dataclass
class Trial:
    """One trial of a record."""

    trial: str
    arm: str
    label: str
    stage: str
    seed: int
    values: Mapping[str, Any]
    auxiliary: str = "none"
    coverage: str = "none"
    status: str = "running"
    epochs: list[Epoch] = field(default_factory=list)

    def train(self, *scores: float, status: str = "finished") -> None:
        """One epoch for each score of val/accuracy, then the end."""
        self.epochs = [Epoch(n, {"val/accuracy": s}) for n, s in enumerate(scores, start=1)]
        self.status = status


@dataclass
class Record:
    """A record that the tests fill by hand."""

    trials: dict[str, Trial] = field(default_factory=dict)

    def add(self, plan: TrialPlan) -> Trial:
        """Note that a plan is being carried out."""
        self.trials[plan.trial] = Trial(
            plan.trial, plan.arm, plan.label, plan.stage, plan.seed, plan.values,
            plan.auxiliary, plan.coverage,
        )  # fmt: skip
        return self.trials[plan.trial]


def start_all(agenda: Agenda, record: Record) -> list[TrialPlan]:
    """Start whatever can be started; nothing ends."""
    plans = []
    while isinstance(plan := agenda.next(record, tuple(record.trials)), TrialPlan):
        record.add(plan)
        plans.append(plan)
    return plans


def carry_out(
    agenda: Agenda, record: Record, scores: Mapping[str, Sequence[float]] | None = None
) -> list[TrialPlan]:
    """Run a study one trial at a time; `scores` by auxiliary, 0.5 over two epochs elsewhere."""
    plans = []
    while not isinstance(plan := agenda.next(record), Done):
        assert isinstance(plan, TrialPlan)
        plans.append(plan)
        trial = record.add(plan)
        trial.train(*(scores or {}).get(plan.auxiliary, (0.4, 0.5)))
    return plans

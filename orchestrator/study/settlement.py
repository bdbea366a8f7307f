"""Which trials the test split is read for, once the search is over, and which one is exported."""

from collections.abc import Mapping
from dataclasses import dataclass

from m2pt.rivals.config import why_no_export
from orchestrator.config.experiment import Experiment
from orchestrator.study.agenda import Agenda
from orchestrator.study.arms import rival_in
from orchestrator.study.selection import ArmRow, best_arm, leaderboard
from orchestrator.study.trial import TrialPlan
from orchestrator.study.view import ENDED_WELL, RecordView, StudyView


@dataclass(frozen=True)
class Settlement:
    """One trial to be measured on the test split."""

    plan: TrialPlan
    export: bool
    """Also fuse it, prove the merge and keep the plain model."""
    costed: bool = False
    """Also measure what it costs in use, for there are rivals to compare."""


def to_settle(record: RecordView, experiment: Experiment, agenda: Agenda) -> list[Settlement]:
    """The finished trials of the arms that are compared: baseline, best arm, controls, rivals.

    One trial is exported: the best seed, on validation, of the best arm (where no arm has a
    pathway, of the baseline; without one, of a rival that can be folded).
    """
    arms = compared(record, experiment)
    chosen = best_arm(record, experiment) or _plainest(arms, record, experiment)
    exported = _best_seed(chosen, record, experiment) if chosen else None
    costed = any(row.kind == "rival" for row in arms)
    names = dict.fromkeys(trial for row in arms for trial in _finished(row, record).values())
    return [Settlement(agenda.plan_of(record, name), name == exported, costed) for name in names]


def compared(record: RecordView, experiment: Experiment) -> list[ArmRow]:
    """The arms that are compared: baseline, best arm, its controls, and the rivals that ran beside
    a confirmed arm (without any pathway, all rivals)."""
    rows = leaderboard(record, experiment)
    best = best_arm(record, experiment)
    arms = [row for row in rows if row.kind == "baseline"] + ([best] if best else [])
    arms += [row for row in rows if best and row.kind != "rival" and row.control_of == best.arm]
    rivals = [row for row in rows if row.kind == "rival"]
    return arms + [row for row in rivals if best is None or "rival" in row.stages]


def to_export(record: StudyView, experiment: Experiment) -> str | None:
    """The trial to export where none is named: the one that the study exported last, else one of
    the best arm, else the first that has ended; None before. Never one that cannot be folded."""
    done = [
        name
        for name, trial in record.trials.items()
        if trial.status in ENDED_WELL and not why_no_export(rival_in(experiment, trial.values))
    ]
    exported = [name for name in done if record.trials[name].exported is not None]
    if exported:
        return exported[-1]
    best = best_arm(record, experiment)
    chosen = [name for name in (best.trials.values() if best else ()) if name in done]
    return next(iter((*chosen, *done)), None)


def _plainest(arms: list[ArmRow], record: RecordView, experiment: Experiment) -> ArmRow | None:
    """The baseline, or else the first arm that gives a plain model."""
    values = {row.arm: record.trials[next(iter(row.trials.values()))].values for row in arms}
    plain = [row for row in arms if not why_no_export(rival_in(experiment, values[row.arm]))]
    baselines = [row for row in plain if row.kind == "baseline"]
    return next(iter((*baselines, *plain)), None)


def _finished(row: ArmRow, record: RecordView) -> Mapping[int, str]:
    return {
        seed: trial
        for seed, trial in row.trials.items()
        if record.trials[trial].status == "finished"
    }


def _best_seed(row: ArmRow, record: RecordView, experiment: Experiment) -> str | None:
    done = {seed: trial for seed, trial in _finished(row, record).items() if seed in row.metrics}
    if not done:
        return None
    sign = 1.0 if experiment.search.mode == "max" else -1.0
    return done[max(done, key=lambda seed: sign * row.metrics[seed])]

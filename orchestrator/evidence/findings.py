"""What a record says, arm by arm, ready to be shown: the one source of tables, plots and report.

Which arm leads, and which one is best, `orchestrator.study.selection` decides; here its rows are
put beside the baseline and the control, on validation and on test.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from orchestrator.config.experiment import Experiment
from orchestrator.evidence.series import (
    Curve,
    Role,
    ScaleSummary,
    ScaleTrack,
    scale_tracks,
    summarise_scales,
)
from orchestrator.evidence.statistics import (
    PairedDifference,
    Spread,
    of_differences,
    paired_difference,
    spread,
)
from orchestrator.evidence.verdict import Comparison, Verdict, verdict
from orchestrator.evidence.wording import Measure, count
from orchestrator.study.selection import ArmRow, best_arm, leaderboard
from orchestrator.study.view import trained
from orchestrator.tracking.record import StudyRecord, TrialRecord


@dataclass(frozen=True)
class Arm:
    """One arm: its row in the leaderboard, its trials, and its figures on the test split.

    Attributes:
        row: from `selection.leaderboard`; metrics are the searched one's, by seed.
        role: its part in the comparison; ``other`` is everything that is not compared on test.
        trials: in order of their seeds.
        tested: the searched measure on the test split by seed; empty where it was not read.
    """

    row: ArmRow
    role: Role
    trials: tuple[TrialRecord, ...]
    tested: Mapping[int, float]

    @property
    def label(self) -> str:
        """The arm in words."""
        return self.row.label

    @property
    def borrows_nothing(self) -> bool:
        """It is a control: its auxiliary carries no knowledge."""
        return self.row.kind == "control"

    @property
    def level(self) -> Spread:
        """Mean and spread of the searched metric over its seeds."""
        return Spread(self.row.mean, self.row.std, self.row.n)

    @property
    def to_baseline(self) -> PairedDifference | None:
        """Arm minus baseline on the searched metric; None for the baseline itself."""
        return None if self.role == "baseline" else of_differences(self.row.deltas)

    @property
    def trials_behind(self) -> tuple[TrialRecord, ...]:
        """The trials behind its figures: those that did not fail, the longest trained."""
        return tuple(trial for trial in self.trials if trial.seed in self.row.metrics)

    @cached_property
    def tracks(self) -> tuple[ScaleTrack, ...]:
        """λ of every linear, of the trials behind its figures, one after the other."""
        return tuple(track for trial in self.trials_behind for track in tracks_of(trial))

    @property
    def scales(self) -> ScaleSummary | None:
        """|λ| at the end, over all linears and seeds."""
        return summarise_scales(self.tracks)

    @property
    def outcome(self) -> str:
        """What became of its trials, such as ``2 finished, 1 failed``."""
        states = [trial.status for trial in self.trials]
        if len(states) == 1:
            trial = self.trials[0]
            return f"{trial.status}: {trial.why}" if trial.why else trial.status
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


@dataclass(frozen=True)
class Findings:
    """A study's figures: the arms in order (baseline apart), and what may be said of the best."""

    measure: Measure
    arms: tuple[Arm, ...]
    baseline: Arm | None
    best: Arm | None
    control: Arm | None
    tried: int
    """Pathway arms that have a figure, controls left out: what the best was chosen among."""

    @cached_property
    def validation(self) -> Comparison | None:
        """The best arm on the split that it was chosen on."""
        if self.best is None:
            return None
        return self._comparison(
            self.best,
            self.measure,
            values=self.best.row.metrics,
            baseline=self.baseline_beside(self.best),
            control=self.control.row.metrics if self.control else {},
        )

    @cached_property
    def test(self) -> Comparison | None:
        """The best arm on the test split; None where it was not read."""
        if self.best is None or not self.best.tested:
            return None
        return self._comparison(
            self.best,
            self.measure.on_test(),
            values=self.best.tested,
            baseline=self.baseline.tested if self.baseline else {},
            control=self.control.tested if self.control else {},
        )

    @cached_property
    def verdict(self) -> Verdict:
        """What may be said, on test where it was read, else on validation."""
        return verdict(self.test or self.validation)

    def baseline_beside(self, arm: Arm) -> Mapping[int, float]:
        """The baseline by seed; beside an arm that was stopped, after as many epochs as that."""
        if self.baseline is None:
            return {}
        if not arm.row.partial:
            return self.baseline.row.metrics
        found = {}
        for trial in self.baseline.trials:
            entry = trial.at(arm.row.epochs)
            value = entry.metrics.get(self.measure.name, math.nan) if entry else math.nan
            if math.isfinite(value) and trial.seed in self.baseline.row.metrics:
                found[trial.seed] = value
        return found

    def curves(self) -> list[Curve]:
        """The searched metric of every trial by epoch, for the plot."""
        arms = [arm for arm in (self.baseline, *self.arms) if arm is not None]
        return [curve for arm in arms for curve in _curves(arm, self.measure)]

    def _comparison(
        self,
        best: Arm,
        measure: Measure,
        *,
        values: Mapping[int, float],
        baseline: Mapping[int, float],
        control: Mapping[int, float],
    ) -> Comparison:
        kind = (self.control.row.control_kind if self.control else None) or "random"
        return Comparison(
            label=best.label,
            auxiliary=best.row.auxiliary,
            measure=measure,
            values=values,
            baseline=baseline,
            control=control,
            control_kind=kind,
            arms_tried=self.tried,
            epochs=best.row.epochs,
            full_epochs=best.row.full_epochs,
        )


def findings(record: StudyRecord, experiment: Experiment) -> Findings:
    """Everything that can be shown of a study at this point; works on a record without trials."""
    measure = Measure(experiment.search.metric, experiment.search.mode)
    best = best_arm(record, experiment)
    rows = leaderboard(record, experiment)
    first = next(iter(experiment.search.controls), None)
    arms = [_arm(row, _role(row, best, first), record, measure) for row in rows]
    by_role = {arm.role: arm for arm in arms if arm.role != "other"}
    return Findings(
        measure=measure,
        arms=tuple(arm for arm in arms if arm.role != "baseline"),
        baseline=by_role.get("baseline"),
        best=by_role.get("arm"),
        control=by_role.get("control"),
        tried=sum(row.kind == "pathway" and row.mean is not None for row in rows),
    )


def difference_on_test(found: Findings, arm: Arm) -> PairedDifference | None:
    """Arm minus baseline on test; None for the baseline, or where either was not read."""
    if found.baseline is None or arm.role == "baseline":
        return None
    return paired_difference(arm.tested, found.baseline.tested)


def tracks_of(trial: TrialRecord) -> tuple[ScaleTrack, ...]:
    """λ of every linear of one trial."""
    return scale_tracks(((entry.epoch, entry.scales) for entry in trial.epochs), trial.auxiliary)


def baseline_level(found: Findings, arm: Arm) -> Spread:
    """The baseline's mean and spread, to be shown beside an arm: over the seeds that both have.

    So the difference beside it is the difference of the two levels. Without a common seed, the
    baseline over all of its own.
    """
    beside = found.baseline_beside(arm)
    matched = [value for seed, value in beside.items() if seed in arm.row.deltas]
    return spread(matched or beside.values())


def progress(record: StudyRecord, experiment: Experiment) -> str:
    """How far a study that is not done has come; empty for one that is."""
    if record.status == "finished":
        return ""
    trials = list(record.trials.values())
    states = [trial.status for trial in trials]
    search = len({trial.arm for trial in trials if trial.stage == "search"})
    said = (
        f"{count(sum(trial.over for trial in trials), 'trial')} over, "
        f"{states.count('running')} under way, {states.count('planned')} planned; "
        f"{search} of {experiment.search.trials} search configurations drawn"
    )
    if record.status == "stopped":
        said += f"; stopped: {record.why or 'no reason was recorded'}"
    return f"{said}. Every figure below may still change."


def _role(row: ArmRow, best: ArmRow | None, control: str | None) -> Role:
    if row.kind == "baseline":
        return "baseline"
    if best is not None and row.arm == best.arm:
        return "arm"
    if best is not None and row.control_of == best.arm and row.control_kind in (control, None):
        return "control"
    return "other"


def _arm(row: ArmRow, role: Role, record: StudyRecord, measure: Measure) -> Arm:
    trials = tuple(record.trials[trial] for trial in row.trials.values())
    name = measure.on_test().name
    tested = {trial.seed: trial.tested[name] for trial in trials if name in trial.tested}
    return Arm(row, role, trials, tested)


def _curves(arm: Arm, measure: Measure) -> list[Curve]:
    curves = []
    for trial in arm.trials:
        values = {entry.epoch: entry.metrics.get(measure.name, math.nan) for entry in trial.epochs}
        finite = {epoch: value for epoch, value in values.items() if math.isfinite(value)}
        if trained(trial) and finite:
            row, epochs, points = arm.row, tuple(finite), tuple(finite.values())
            family = row.label.partition(" · ")[0] if row.kind == "rival" else row.auxiliary
            curves.append(Curve(row.arm, row.label, family, arm.role, trial.seed, epochs, points))
    return curves

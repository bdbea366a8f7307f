"""What a record says, arm by arm, ready to be shown: the one source of tables, plots and report.

Which arm leads, and which one is best, `orchestrator.study.selection` decides; here its figures
are put beside the baseline's and the control's.
"""

import math
from collections.abc import Mapping, Sequence
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
from orchestrator.evidence.statistics import PairedDifference, Spread, paired_difference, spread
from orchestrator.evidence.verdict import Comparison, Verdict, verdict
from orchestrator.evidence.wording import Measure, count
from orchestrator.study.selection import best_arm, leaderboard
from orchestrator.tracking.record import StudyRecord, TrialRecord


@dataclass(frozen=True)
class Arm:
    """One arm with all its trials.

    Attributes:
        role: its part in the comparison; ``other`` is everything that is not compared on test.
        borrows_nothing: it is a control: stage ``control``, or an auxiliary declared as one.
        values: the search metric by seed, each after the trial's last epoch; only seeds that were
            trained for ``epochs`` epochs.
        tested: the same measure on the test split by seed; empty where it was not read.
    """

    arm: str
    label: str
    auxiliary: str
    coverage: str
    role: Role
    borrows_nothing: bool
    trials: tuple[TrialRecord, ...]
    epochs: int
    full_epochs: int
    values: Mapping[int, float]
    tested: Mapping[int, float]

    @property
    def partial(self) -> bool:
        """No seed of it was trained to the end."""
        return self.epochs < self.full_epochs

    @cached_property
    def level(self) -> Spread:
        """Mean and spread of the search metric over its seeds."""
        return spread(self.values.values())

    @cached_property
    def tracks(self) -> tuple[ScaleTrack, ...]:
        """λ of every linear, of all its longest trials one after the other."""
        longest = [trial for trial in self.trials if len(trial.epochs) == self.epochs]
        return tuple(track for trial in longest for track in tracks_of(trial))

    @property
    def scales(self) -> ScaleSummary | None:
        """|λ| at the end, over all linears and seeds."""
        return summarise_scales(self.tracks)

    @property
    def stages(self) -> tuple[str, ...]:
        """Why its trials were run."""
        return tuple(dict.fromkeys(trial.stage for trial in self.trials))

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
    def tested(self) -> bool:
        """Whether the best arm was measured on the test split."""
        return self.best is not None and bool(self.best.tested)

    @cached_property
    def validation(self) -> Comparison | None:
        """The best arm on the split that it was chosen on."""
        return self._comparison(on_test=False)

    @cached_property
    def test(self) -> Comparison | None:
        """The best arm on the test split; None where it was not read."""
        return self._comparison(on_test=True) if self.tested else None

    @cached_property
    def verdict(self) -> Verdict:
        """What may be said, on test where it was read, else on validation."""
        return verdict(self.test or self.validation)

    def baseline_at(self, epoch: int) -> Mapping[int, float]:
        """The baseline by seed after as many epochs: partial arms are shown beside this."""
        if self.baseline is None:
            return {}
        return values_at(self.baseline.trials, self.measure, epoch)

    def difference(self, arm: Arm) -> PairedDifference | None:
        """Arm minus baseline at the same seeds and the same epoch; None for the baseline."""
        if self.baseline is None or arm.arm == self.baseline.arm:
            return None
        return paired_difference(arm.values, self.baseline_at(arm.epochs))

    def beside(self, arm: Arm) -> Spread:
        """The baseline's level after as many epochs as the arm was trained for."""
        return spread(self.baseline_at(arm.epochs).values())

    def curves(self) -> list[Curve]:
        """The search metric of every trial by epoch, for the plot."""
        arms = [arm for arm in (self.baseline, *self.arms) if arm is not None]
        return [curve for arm in arms for curve in _curves(arm, self.measure)]

    def _comparison(self, *, on_test: bool) -> Comparison | None:
        best = self.best
        if best is None:
            return None

        def side(arm: Arm | None) -> Mapping[int, float]:
            if arm is None:
                return {}
            return arm.tested if on_test else arm.values

        baseline: Mapping[int, float] = side(self.baseline)
        if not on_test:
            baseline = self.baseline_at(best.epochs)
        return Comparison(
            label=best.label,
            auxiliary=best.auxiliary,
            measure=self.measure.on_test() if on_test else self.measure,
            values=side(best),
            baseline=baseline,
            control=side(self.control),
            control_kind=self.control.auxiliary.partition("~")[0] if self.control else "random",
            arms_tried=self.tried,
            epochs=best.epochs,
            full_epochs=best.full_epochs,
        )


def findings(record: StudyRecord, experiment: Experiment) -> Findings:
    """Everything that can be shown of a study at this point; works on a record without trials."""
    measure = Measure(experiment.search.metric, experiment.search.mode)
    groups: dict[str, list[TrialRecord]] = {}
    for trial in record.trials.values():
        groups.setdefault(trial.arm, []).append(trial)
    chosen = best_arm(record, experiment)
    best = chosen.arm if chosen else None
    roles = _roles(groups, best)
    arms = {arm: _arm(trials, roles[arm], experiment, measure) for arm, trials in groups.items()}
    order = [row.arm for row in leaderboard(record, experiment) if row.arm in arms]
    order += [arm for arm in arms if arm not in order]
    by_role = {role: arm for arm, role in roles.items() if role != "other"}
    baseline = by_role.get("baseline")
    ranked = tuple(arms[arm] for arm in order if arm != baseline)
    return Findings(
        measure=measure,
        arms=ranked,
        baseline=arms[baseline] if baseline else None,
        best=arms[best] if best else None,
        control=arms[by_role["control"]] if "control" in by_role else None,
        tried=sum(bool(arm.values) and not arm.borrows_nothing for arm in ranked),
    )


def tracks_of(trial: TrialRecord) -> tuple[ScaleTrack, ...]:
    """λ of every linear of one trial."""
    return scale_tracks((entry.epoch, entry.scales) for entry in trial.epochs)


def values_at(trials: Sequence[TrialRecord], measure: Measure, epoch: int) -> dict[int, float]:
    """The measure by seed after this epoch; seeds that never got there, or failed, are left out."""
    found = {}
    for trial in trials:
        entry = trial.at(epoch)
        value = entry.metrics.get(measure.name) if entry else None
        if value is not None and math.isfinite(value) and trial.status != "failed":
            found[trial.seed] = value
    return found


def progress(record: StudyRecord, experiment: Experiment) -> str:
    """How far a study that is not done has come; empty for one that is."""
    if record.status == "finished":
        return ""
    states = [trial.status for trial in record.trials.values()]
    over = sum(trial.over for trial in record.trials.values())
    search = sum(trial.stage == "search" for trial in record.trials.values())
    said = [
        f"{count(over, 'trial')} over, {states.count('running')} running, "
        f"{states.count('planned')} planned; {search} of {experiment.search.trials} "
        "search configurations drawn"
    ]
    if record.status == "stopped":
        said.append(f"it was stopped ({record.why or 'no reason was recorded'})")
    return "; ".join(said) + ". Every figure below may still change."


def _roles(groups: Mapping[str, Sequence[TrialRecord]], best: str | None) -> dict[str, Role]:
    """Baseline, best arm and its control by arm; every other arm is ``other``."""
    roles: dict[str, Role] = dict.fromkeys(groups, "other")
    for arm, trials in groups.items():
        if any(trial.stage == "baseline" for trial in trials):
            roles[arm] = "baseline"
    if best is None:
        return roles
    roles[best] = "arm"
    twin = groups[best][0]
    for arm, trials in groups.items():
        if roles[arm] == "other" and any(_is_control_of(trial, twin) for trial in trials):
            roles[arm] = "control"
    return roles


def _is_control_of(trial: TrialRecord, twin: TrialRecord) -> bool:
    """Run as a control, and the same configuration but for what it borrows."""

    def rest(of: TrialRecord) -> dict[str, object]:
        return {path: value for path, value in of.values.items() if path != "pathway.auxiliary"}

    if trial.stage != "control" or trial.coverage != twin.coverage:
        return False
    names = [name.partition("~")[2] for name in trial.auxiliary.split("+")]
    return "+".join(names) == twin.auxiliary and rest(trial) == rest(twin)


def _arm(
    trials: Sequence[TrialRecord], role: Role, experiment: Experiment, measure: Measure
) -> Arm:
    first = trials[0]
    epochs = max(
        (trial.epochs[-1].epoch for trial in trials if trial.epochs and trial.status != "failed"),
        default=0,
    )
    full = max((trial.epochs_planned or 0 for trial in trials), default=0)
    on_test = measure.on_test().name
    return Arm(
        arm=first.arm,
        label=first.label,
        auxiliary=first.auxiliary,
        coverage=first.coverage,
        role=role,
        borrows_nothing=role == "control" or _borrows_nothing(first, experiment),
        trials=tuple(sorted(trials, key=lambda trial: trial.seed)),
        epochs=epochs,
        full_epochs=full or experiment.training.epochs,
        values=values_at(trials, measure, epochs),
        tested={trial.seed: trial.tested[on_test] for trial in trials if on_test in trial.tested},
    )


def _borrows_nothing(trial: TrialRecord, experiment: Experiment) -> bool:
    if trial.stage == "control":
        return True
    sources = [experiment.auxiliaries.get(name) for name in trial.auxiliary.split("+")]
    return any(source is not None and source.control is not None for source in sources)


def _curves(arm: Arm, measure: Measure) -> list[Curve]:
    curves = []
    for trial in arm.trials:
        points = [
            (entry.epoch, entry.metrics[measure.name])
            for entry in trial.epochs
            if math.isfinite(entry.metrics.get(measure.name, math.nan))
        ]
        if points:
            epochs, values = zip(*points, strict=True)
            curves.append(
                Curve(arm.arm, arm.label, arm.auxiliary, arm.role, trial.seed, epochs, values)
            )
    return curves

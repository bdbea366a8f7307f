"""Arms side by side: which is best, by how much over the baseline at the same seeds. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, stdev

from orchestrator.config.experiment import Experiment
from orchestrator.study.arms import MATCHED, Kind, kind_of, matched_values
from orchestrator.study.controls import controls_of
from orchestrator.study.identity import canonical
from orchestrator.study.rivals import rivals_of
from orchestrator.study.view import RecordView, TrialView, last_metric, metric_at, trained


@dataclass(frozen=True)
class ArmRow:
    """One arm over its seeds, and against the baseline at the same seeds.

    Attributes:
        arm, label, auxiliary, coverage: as in the record.
        kind: baseline, plain (no auxiliary, but other settings), pathway, control or rival.
        stages: in which stages it ran.
        trials: trial id by seed.
        metrics: the searched metric by seed, after each trial's last epoch. Where some seeds were
            trained to the end, only those; failed trials are left out.
        mean, std: over these seeds; std (of a sample) needs two.
        epochs, full_epochs: the fewest epochs behind `metrics`, and how many there should be.
        deltas: metric minus the baseline's by seed, where the baseline has that seed; for a
            partial arm the baseline's is taken at the same epoch. Empty for the baseline.
        delta: mean of the deltas.
        control_of, control_kind: for a control or a rival, the arm that it was set beside, and
            what it is.
    """

    arm: str
    label: str
    auxiliary: str
    coverage: str
    kind: Kind
    stages: tuple[str, ...]
    trials: Mapping[int, str]
    metrics: Mapping[int, float]
    mean: float | None
    std: float | None
    epochs: int
    full_epochs: int
    deltas: Mapping[int, float]
    delta: float | None
    control_of: str | None = None
    control_kind: str | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds behind `mean`."""
        return tuple(self.metrics)

    @property
    def n(self) -> int:
        """How many seeds are behind `mean`."""
        return len(self.metrics)

    @property
    def n_paired(self) -> int:
        """How many seeds are behind `delta`."""
        return len(self.deltas)

    @property
    def partial(self) -> bool:
        """Whether it was trained for fewer epochs than its configuration says."""
        return self.epochs < self.full_epochs


def leaderboard(record: RecordView, experiment: Experiment) -> list[ArmRow]:
    """All arms of a study: those trained to the end first, the best first; then partial ones, the
    longest trained first; then those without a metric."""
    by_arm: dict[str, list[TrialView]] = {}
    for trial in record.trials.values():
        by_arm.setdefault(trial.arm, []).append(trial)
    baseline = _by_seed(
        [trial for trial in record.trials.values() if trial.stage == "baseline"], experiment
    )
    matched = _matched(record, experiment)
    rows = [_row(trials, baseline, experiment, matched) for trials in by_arm.values()]
    return sorted(rows, key=lambda row: _rank(row, experiment))


def best_arm(record: RecordView, experiment: Experiment) -> ArmRow | None:
    """The pathway arm to report: a confirmed one where there is one, else the best of the search.

    Arms that were confirmed on more seeds come before those that did better on fewer.
    """
    rows = [
        row
        for row in leaderboard(record, experiment)
        if row.kind == "pathway" and row.mean is not None
    ]
    confirmed = [row for row in rows if "confirm" in row.stages and not row.partial]
    if confirmed:
        most = max(row.n for row in confirmed)
        return next(row for row in confirmed if row.n == most)
    return rows[0] if rows else None


def leaders(record: RecordView, experiment: Experiment) -> list[TrialView]:
    """The search trials whose arms are to be confirmed, the best first.

    Only what was seen on the search's seed counts, so the choice stays the same while it is being
    confirmed: pathway arms, no controls; those trained to the end by their metric, then, if they
    are too few, the longest trained.
    """
    search = experiment.search
    candidates = [
        trial
        for trial in record.trials.values()
        if trial.stage == "search"
        and trial.status in ("finished", "stopped")
        and kind_of(experiment, trial.values, trial.stage) == "pathway"
        and last_metric(trial, search.metric) is not None
    ]

    def rank(trial: TrialView) -> tuple[float, float]:
        epochs = min(trained(trial), full_epochs(experiment, trial))
        return -epochs / full_epochs(experiment, trial), _signed(trial, experiment)

    return sorted(candidates, key=rank)[: search.confirm]


def full_epochs(experiment: Experiment, trial: TrialView) -> int:
    """How many epochs the trial's configuration says."""
    training = trial.values.get("training")
    whole = training.get("epochs") if isinstance(training, Mapping) else None
    return int(trial.values.get("training.epochs", whole or experiment.training.epochs))


def _signed(trial: TrialView, experiment: Experiment) -> float:
    """Smaller is better."""
    value = last_metric(trial, experiment.search.metric)
    if value is None:
        return float("inf")
    return -value if experiment.search.mode == "max" else value


def _rank(row: ArmRow, experiment: Experiment) -> tuple[int, float, float]:
    if row.mean is None:
        return 2, 0.0, 0.0
    signed = -row.mean if experiment.search.mode == "max" else row.mean
    return (1, -row.epochs / row.full_epochs, signed) if row.partial else (0, 0.0, signed)


def _by_seed(trials: Sequence[TrialView], experiment: Experiment) -> dict[int, TrialView]:
    """One trial for each seed: those that did not fail and have a metric; only those trained to
    the end, where there are any."""
    metric = experiment.search.metric
    usable = [
        trial
        for trial in trials
        if trial.status != "failed" and last_metric(trial, metric) is not None
    ]
    full = [trial for trial in usable if trained(trial) >= full_epochs(experiment, trial)]
    chosen = sorted(full or usable, key=lambda trial: trial.seed)
    return {trial.seed: trial for trial in chosen}


def _row(
    trials: Sequence[TrialView],
    baseline: Mapping[int, TrialView],
    experiment: Experiment,
    matched: Mapping[str, tuple[str, str]],
) -> ArmRow:
    metric, first = experiment.search.metric, trials[0]
    usable = _by_seed(trials, experiment)
    values = {seed: last_metric(trial, metric) for seed, trial in usable.items()}
    metrics = {seed: value for seed, value in values.items() if value is not None}
    full = full_epochs(experiment, first)
    kinds = [kind_of(experiment, trial.values, trial.stage) for trial in trials]
    kind: Kind = "baseline" if "baseline" in kinds else kinds[0]
    deltas = {} if kind == "baseline" else _deltas(usable, baseline, experiment)
    return ArmRow(
        arm=first.arm,
        label=first.label,
        auxiliary=first.auxiliary,
        coverage=first.coverage,
        kind=kind,
        stages=tuple(dict.fromkeys(trial.stage for trial in trials)),
        trials={trial.seed: trial.trial for trial in sorted(trials, key=lambda one: one.seed)},
        metrics=metrics,
        mean=fmean(metrics.values()) if metrics else None,
        std=stdev(metrics.values()) if len(metrics) > 1 else None,
        epochs=min((trained(trial) for trial in (usable.values() or trials)), default=0),
        full_epochs=full,
        deltas=deltas,
        delta=fmean(deltas.values()) if deltas else None,
        control_of=matched[first.arm][0] if first.arm in matched else None,
        control_kind=matched[first.arm][1] if first.arm in matched else None,
    )


def _deltas(
    arm: Mapping[int, TrialView], baseline: Mapping[int, TrialView], experiment: Experiment
) -> dict[int, float]:
    metric = experiment.search.metric
    deltas: dict[int, float] = {}
    for seed in arm.keys() & baseline.keys():
        trial, plain = arm[seed], baseline[seed]
        full = trained(trial) >= full_epochs(experiment, trial)
        ours = last_metric(trial, metric)
        epoch = trained(plain) if full else trained(trial)
        theirs = metric_at(plain, metric, epoch)
        if ours is not None and theirs is not None:
            deltas[seed] = ours - theirs
    return dict(sorted(deltas.items()))


def _matched(record: RecordView, experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Control or rival -> the arm that it is set beside, and the kind of it."""
    arms: dict[str, str] = {}
    controls: dict[str, str] = {}
    found: dict[str, tuple[str, str]] = {}
    by_values = {
        canonical(trial.values): trial.arm
        for trial in record.trials.values()
        if trial.stage in ("control", "rival")
    }
    for trial in record.trials.values():
        kind = kind_of(experiment, trial.values, trial.stage)
        if kind in ("pathway", "control"):
            alike = canonical(matched_values(experiment, trial.values))
            (arms if kind == "pathway" else controls)[alike] = trial.arm
    for alike in controls.keys() & arms.keys():
        found[controls[alike]] = arms[alike], MATCHED
    for leader in leaders(record, experiment):
        for name, values in chain(controls_of(experiment, leader), rivals_of(experiment, leader)):
            arm = by_values.get(canonical(values))
            if arm is not None:
                found[arm] = leader.arm, name
    return found

"""What a study will do, before anything is started. Pure: writes nothing, reads nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from orchestrator.config.experiment import Experiment, Scheduler, WeightSource
from orchestrator.config.weights import maturity
from orchestrator.study.agenda import Agenda
from orchestrator.study.arms import is_control, pathway_auxiliaries, possible_auxiliaries
from orchestrator.study.identity import Digests
from orchestrator.study.trial import DigestsOf, TrialPlan
from orchestrator.study.view import EpochView, Stage, value_text
from search_spaces.space import Choice, Distribution, Grid, Space

_PREVIEWED = 12


@dataclass(frozen=True)
class PathLine:
    """One searched path: its distribution in words, and when it is searched."""

    path: str
    kind: str
    text: str
    when: str


@dataclass(frozen=True)
class CellLine:
    """One cell of the grid, and how many search trials fall to it."""

    values: Mapping[str, Any]
    trials: int


@dataclass(frozen=True)
class StageLine:
    """How many trials a stage has at most."""

    stage: Stage
    trials: int
    note: str


@dataclass(frozen=True)
class ArmLine:
    """One of the first trials."""

    trial: str
    arm: str
    label: str
    stage: Stage
    seed: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class GangLine:
    """What trains at once: `gangs` gangs of `workers` workers each, and what they take in all."""

    gangs: int
    workers: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class AuxiliaryLine:
    """One auxiliary that trials may use, and where its weights come from."""

    name: str
    source: str


@dataclass(frozen=True)
class Plan:
    """What `plan` prints and `plan.json` holds.

    Attributes:
        configurations: how many the space has; None if it is continuous or too large to count.
        trials, epochs: at most, over all stages; stopped trials and repeats make them fewer.
        rungs: epochs after which ASHA stops search trials; baseline, confirm and control trials
            always train all epochs.
        budget: each cap, or None.
        arms: the first trials in order; those of a sampler that learns are only as certain as
            that nothing has been observed yet.
        warnings: what a person should know before starting.
    """

    study: str
    metric: str
    mode: str
    sampler: str
    seeds: tuple[int, ...]
    space: tuple[PathLine, ...]
    cells: tuple[CellLine, ...]
    configurations: int | None
    stages: tuple[StageLine, ...]
    trials: int
    epochs: int
    rungs: tuple[int, ...]
    gangs: GangLine
    auxiliaries: tuple[AuxiliaryLine, ...]
    arms: tuple[ArmLine, ...]
    budget: Mapping[str, float | None]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": 1, **asdict(self)}


def make_plan(experiment: Experiment, digests: Digests | DigestsOf | None = None) -> Plan:
    """Plan a study.

    Args:
        experiment: a checked experiment.
        digests: what trial ids are made of; without them ids are placeholders.
    """
    agenda = Agenda(experiment, digests or placeholders(experiment))
    space = Space(experiment.search.space)
    size = space.size() if space.order else None
    stages = _stages(experiment, agenda, size)
    trials = sum(line.trials for line in stages)
    resources = experiment.resources
    gangs = max(1, min(resources.concurrent_trials, trials))
    workers = gangs * resources.workers
    return Plan(
        study=experiment.name,
        metric=experiment.search.metric,
        mode=experiment.search.mode,
        sampler=experiment.search.sampler,
        seeds=agenda.seeds,
        space=tuple(_path_line(path, space.paths[path]) for path in space.order),
        cells=_cells(agenda, _planned(stages, "search")) if space.grids else (),
        configurations=size,
        stages=stages,
        trials=trials,
        epochs=trials * _most_epochs(experiment),
        rungs=rungs(experiment.search.scheduler, _most_epochs(experiment)) if space.order else (),
        gangs=GangLine(
            gangs,
            resources.workers,
            workers * resources.cpus_per_worker,
            workers * resources.gpus_per_worker,
        ),
        auxiliaries=tuple(
            AuxiliaryLine(name, source_text(experiment.source_of(name), maturity(name)[1]))
            for name in possible_auxiliaries(experiment)
        ),
        arms=tuple(_arm_line(plan) for plan in preview(agenda, _PREVIEWED)),
        budget=experiment.budget.model_dump(),
        warnings=(*_warnings(experiment, agenda, size), *_capped(experiment, stages)),
    )


def rungs(scheduler: Scheduler, epochs: int) -> tuple[int, ...]:
    """The epochs after which ASHA may stop a trial of `epochs` epochs; the last epoch is none."""
    if scheduler.kind == "none":
        return ()
    found, rung = [], scheduler.grace_epochs
    while rung < epochs:
        found.append(rung)
        rung *= scheduler.reduction_factor
    return tuple(found)


def preview(agenda: Agenda, most: int) -> list[TrialPlan]:
    """The first trials of a study, as they come if none has ended yet."""
    plans: list[TrialPlan] = []
    record = _Imagined()
    while len(plans) < most:
        plan = agenda.next(record, record.trials.keys())
        if not isinstance(plan, TrialPlan):
            break
        plans.append(plan)
        record.trials[plan.trial] = _Started(
            **{part.name: getattr(plan, part.name) for part in fields(plan)}
        )
    return plans


def source_text(source: WeightSource, epoch: int | None = None) -> str:
    """Where weights come from, in words; `epoch` of a pre-training is its last one where None."""
    if source.pretrain is not None:
        made = source.pretrain
        part = "" if epoch in (None, made.epochs) else f"{epoch} of "
        return f"pre-trained here on {made.data.source} for {part}{made.epochs} epochs"
    return source.weights or f"{source.control} control like {source.like}"


@dataclass(frozen=True)
class _Started(TrialPlan):
    """A trial of which nothing has been seen yet."""

    status: str = "running"
    epochs: tuple[EpochView, ...] = ()


@dataclass(frozen=True)
class _Imagined:
    """A record in which trials never end."""

    trials: dict[str, _Started] = field(default_factory=dict)


def placeholders(experiment: Experiment) -> Digests:
    """Stand in for digests where nothing is read: ids made of them are not those of the study."""
    names = (*experiment.auxiliaries, *possible_auxiliaries(experiment))
    return Digests("data", None, {name: name for name in names})


def _stages(experiment: Experiment, agenda: Agenda, size: int | None) -> tuple[StageLine, ...]:
    search = experiment.search
    if agenda.single:
        changed = experiment.pathway.names or experiment.rival.kind is not None
        stage: Stage = "search" if changed else "baseline"
        return (StageLine(stage, 1, "the file's configuration, once"),)
    seeds = len(agenda.seeds)
    searched = min(search.trials, _most_configurations(experiment, agenda, size))
    confirmed = min(search.confirm, searched) if _borrows(experiment) else 0
    again = f"the best {confirmed} of the search on {seeds} seeds" if confirmed else "none"
    lines: tuple[StageLine, ...] = (
        StageLine(
            "baseline", seeds, f"no auxiliary, seeds {agenda.seeds[0]} to {agenda.seeds[-1]}"
        ),
        StageLine("search", searched, f"{search.sampler}, seed {experiment.seed}"),
        StageLine(
            "confirm", confirmed * (seeds - 1), f"{again}; the search's seed is there already"
        ),
        StageLine(
            "control",
            confirmed * seeds * len(search.controls),
            f"each confirmed arm beside its controls: {', '.join(search.controls)}",
        ),
        StageLine(
            "rival",
            confirmed * seeds * len(search.rivals),
            f"and beside its rivals: {', '.join(search.rivals)}",
        ),
    )
    return tuple(line for line in lines if line.trials)


def _most_configurations(experiment: Experiment, agenda: Agenda, size: int | None) -> int:
    if not experiment.search.space:
        return int(bool(experiment.pathway.names) or experiment.rival.kind is not None)
    if size is None:
        return experiment.search.trials
    return size - agenda.covers_baseline


def _borrows(experiment: Experiment) -> bool:
    return any(not is_control(experiment, name) for name in pathway_auxiliaries(experiment))


def _cells(agenda: Agenda, trials: int) -> tuple[CellLine, ...]:
    cells = agenda.sampler.cells
    each, left = divmod(trials, len(cells))
    return tuple(CellLine(cell, each + (index < left)) for index, cell in enumerate(cells))


def _most_epochs(experiment: Experiment) -> int:
    epochs = [experiment.training.epochs]
    distribution = experiment.search.space.get("training.epochs")
    if isinstance(distribution, Choice | Grid):
        epochs += [value for value in distribution.values if isinstance(value, int)]
    elif distribution is not None:
        epochs.append(int(distribution.bounds[1]))
    return max(epochs)


def _warnings(experiment: Experiment, agenda: Agenda, size: int | None) -> tuple[str, ...]:
    search, found = experiment.search, []
    if agenda.single:
        return ()
    most = _most_configurations(experiment, agenda, size)
    if experiment.search.space and most < search.trials:
        found.append(
            f"the space has {most} configurations beside the baseline, so not all "
            f"{search.trials} trials of search.trials can differ"
        )
    if search.seeds < 3:
        found.append(f"{search.seeds} seed(s) say little about spread; search.seeds 3 or more does")
    if len(agenda.sampler.cells) > search.trials:
        found.append(
            f"the grid has {len(agenda.sampler.cells)} cells, but search.trials is "
            f"{search.trials}: some cells stay empty"
        )
    if search.rivals and not (search.confirm and _borrows(experiment)):
        found.append(
            "search.rivals run beside confirmed arms with a pathway, and there will be none"
        )
    if not _borrows(experiment):
        found.append("no trial borrows weights: pathway.auxiliary is null and is not searched")
    return tuple(found)


def _capped(experiment: Experiment, stages: tuple[StageLine, ...]) -> Iterator[str]:
    """What the cap on trials leaves out."""
    cap, most = experiment.budget.trials, sum(line.trials for line in stages)
    if cap is None or cap >= most:
        return
    baselines = sum(line.trials for line in stages if line.stage == "baseline")
    kept = (
        f"of these {baselines} are baselines"
        if cap >= baselines
        else f"that is fewer than the {baselines} baselines, and nothing is searched"
    )
    yield (
        f"budget.trials: {cap} of at most {most} trials are started ({kept}); then the study "
        "stops, and a larger cap goes on"
    )


def _path_line(path: str, distribution: Distribution) -> PathLine:
    if isinstance(distribution, Choice | Grid):
        text = ", ".join(value_text(value) for value in distribution.values)
    else:
        low, high = distribution.bounds
        text = f"{low:g} to {high:g}"
    when = " and ".join(
        f"{other} is " + " or ".join(value_text(value) for value in wanted)
        for other in distribution.when
        if (wanted := distribution.wanted(other))
    )
    return PathLine(path, distribution.kind, text, when)


def _arm_line(plan: TrialPlan) -> ArmLine:
    return ArmLine(plan.trial, plan.arm, plan.label, plan.stage, plan.seed, plan.values)


def _planned(stages: tuple[StageLine, ...], stage: Stage) -> int:
    return sum(line.trials for line in stages if line.stage == stage)

"""What a study holds and moves: parameters, memory, bytes. Pure.

It follows from the experiment and from two counts of its model; `forecast` goes on to time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from math import ceil, prod
from typing import Any

from m2pt.models.config import ModelConfig, linear_shape
from m2pt.pathway.config import LINEARS, LinearName
from m2pt.pathway.coverage import scale_group, scale_places, select
from m2pt.rivals.size import Added, added
from orchestrator.config.experiment import Budget, Experiment, Resources
from orchestrator.config.rivals import rival_of
from orchestrator.study.agenda import Agenda
from orchestrator.study.arms import is_control, possible_auxiliaries
from orchestrator.study.forecast import ForeseenTrial, Range, going_on, written
from orchestrator.study.plan import StageLine, make_plan, placeholders, preview, rungs
from orchestrator.study.trial import TrialPlan

STATES_PER_PARAMETER = 2
"""AdamW's two moments."""

ACTIVATIONS_PER_TOKEN = (8, 2)
"""How often autograd keeps a width of the model, and one of the MLP, for each token and block."""


ARMS_LOOKED_AT = 64
"""Trials of the opening whose own configuration is looked at; further ones are like them."""


@dataclass(frozen=True)
class ModelNumbers:
    """Of the plain target: what it learns, what else its state dict holds, its sequence length, and
    what of it a linear probe trains."""

    parameters: int
    buffers: int
    tokens: int
    head: int = 0


@dataclass(frozen=True)
class ArmCost:
    """One arm on one worker.

    Attributes:
        target, auxiliary, scales: parameters of each part; `scales` are the λ values. An auxiliary
            that a rival runs beside the target is counted with its biases.
        auxiliary_trained: whether auxiliary weights are trained along (else they are frozen).
        trained: all parameters that the optimiser changes.
        weights_bytes, gradients_bytes, optimizer_bytes: what training holds of them.
        activations_bytes: kept for the backward pass of a micro-batch.
        checkpoint_bytes: one resumable state.
    """

    target: int
    auxiliary: int
    auxiliary_trained: bool
    scales: int
    trained: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    checkpoint_bytes: int

    @property
    def memory_bytes(self) -> int:
        """All of it, on each worker."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
        )


def arm_cost(
    experiment: Experiment, numbers: ModelNumbers, activations_bytes: int | None = None
) -> ArmCost:
    """What a trial of this resolved experiment holds.

    `activations_bytes` are the measured ones of the plain target; without them they are estimated.
    """
    pathway, item = experiment.pathway, item_bytes(experiment.resources)
    linears = select(pathway.coverage, experiment.model.depth) if pathway.names else ()
    sizes, many = linear_sizes(experiment.model), len(pathway.names)
    covered = sum(sizes[linear] for _, linear in linears)
    numbers_of = {
        scale_group(pathway.scale, block, linear): scale_places(
            pathway.coverage, pathway.scale, linear
        )[0]
        for block, linear in linears
    }
    scales = many * sum(numbers_of.values())
    training = pathway.training
    changes = many * training.rank * sum(sum(linear_shape(experiment.model, n)) for _, n in linears)
    rival = rival_of(experiment)
    beside = (
        Added(0, 0, 0)
        if rival is None
        else added(rival, experiment.model, len(experiment.rival.names))
    )
    borrowed = many * (covered + _biases(experiment, linears)) + beside.frozen
    learned = (borrowed if training.kind == "trained" and many else changes) + beside.trained
    target = numbers.head if experiment.training.train == "probe" else numbers.parameters
    trained = target + learned + (scales if pathway.scale.learned else 0)
    kept = target + numbers.buffers + scales + learned
    averaged = 0 if experiment.training.ema_decay is None else kept
    own = item * (numbers.parameters + changes + beside.trained + averaged)
    own += (2 if pathway.keep == "bf16" else item) * borrowed
    plain = (
        activation_estimate(experiment, numbers) if activations_bytes is None else activations_bytes
    )
    parts = experiment.resources.workers if experiment.resources.sharding == "fsdp2" else 1
    small = numbers.buffers + scales  # not worth sharding
    return ArmCost(
        target=numbers.parameters,
        auxiliary=borrowed,
        auxiliary_trained=training.kind == "trained" and bool(linears),
        scales=scales,
        trained=trained,
        weights_bytes=ceil(own / parts) + item * small,
        gradients_bytes=item * ceil(trained / parts),
        optimizer_bytes=item * STATES_PER_PARAMETER * ceil(trained / parts),
        activations_bytes=plain + item * covered,  # W + λW' is kept as well
        checkpoint_bytes=item * (kept + averaged + STATES_PER_PARAMETER * trained),
    )


def linear_sizes(model: ModelConfig) -> dict[LinearName, int]:
    """Weights of the four linears of one block."""
    return {linear: prod(linear_shape(model, linear)) for linear in LINEARS}


def _biases(experiment: Experiment, linears: Sequence[tuple[int, LinearName]]) -> int:
    """Biases that one auxiliary lends."""
    if experiment.pathway.bias == "ignored":
        return 0
    model = experiment.model
    return sum(
        linear_shape(model, linear)[0] for _, linear in linears if linear != "qkv" or model.qkv_bias
    )


def block_bytes(model: ModelConfig) -> int:
    """An auxiliary as it is stored and fetched: the weights of its blocks in float32."""
    return 4 * model.depth * sum(linear_sizes(model).values())


def activation_estimate(experiment: Experiment, numbers: ModelNumbers) -> int:
    """Bytes that a plain target of this size keeps for the backward pass of a micro-batch."""
    model, recipe = experiment.model, experiment.training
    widths, hidden = ACTIVATIONS_PER_TOKEN
    each = widths * model.width + hidden * int(model.width * model.mlp_ratio)
    micro = ceil(recipe.batch_size / (experiment.resources.workers * recipe.accumulate))
    micro *= recipe.repeats
    item = 2 if experiment.resources.precision == "bf16" else item_bytes(experiment.resources)
    return item * micro * numbers.tokens * model.depth * each


def item_bytes(resources: Resources) -> int:
    """Of one weight; with bf16 only the arithmetic is in two bytes."""
    return 8 if resources.precision == "fp64" else 4


@dataclass(frozen=True)
class PlannedArm:
    """A trial as it is planned before anything was observed, and what it holds."""

    plan: TrialPlan
    cost: ArmCost


@dataclass(frozen=True)
class Moved:
    """Bytes that a study moves.

    Attributes:
        data: of the files that every worker's process reads; 0 where samples are generated.
        auxiliaries: fetched once by every node that trains.
        checkpoint: the largest state of one trial.
        kept: of the states of all trials that stay while it runs, if every trial runs out.
        written: of all states, those included that go when a later one is complete.
        export: the plain model.
    """

    data: int
    auxiliaries: int
    checkpoint: int
    kept: int
    written: Range
    export: int


@dataclass(frozen=True)
class StudyCost:
    """What a study holds and moves.

    Attributes:
        arms: of the opening, in order (`ARMS_LOOKED_AT` at most).
        stages: all trials; a stage follows another.
        activations_measured: or else estimated from the shape of the model.
    """

    model: ModelNumbers
    arms: tuple[PlannedArm, ...]
    stages: tuple[tuple[ForeseenTrial, ...], ...]
    moved: Moved
    activations_measured: bool

    @property
    def largest(self) -> PlannedArm:
        """The arm that takes the most memory."""
        return max(self.arms, key=lambda arm: arm.cost.memory_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": asdict(self.model),
            "arms": [
                {
                    "trial": arm.plan.trial,
                    "label": arm.plan.label,
                    "stage": arm.plan.stage,
                    "seed": arm.plan.seed,
                    "memory_bytes": arm.cost.memory_bytes,
                    **asdict(arm.cost),
                }
                for arm in self.arms
            ],
            "activations": "measured" if self.activations_measured else "estimated",
            "moved_bytes": {**asdict(self.moved), "written": self.moved.written._asdict()},
        }


def study_cost(
    experiment: Experiment,
    numbers: ModelNumbers,
    *,
    data_bytes: int,
    activations_bytes: int | None = None,
) -> StudyCost:
    """What the whole study holds and moves, whatever its budget.

    `activations_bytes` are the measured ones of the plain target; without them they are estimated.
    """
    uncapped = experiment.model_copy(update={"budget": Budget()})
    agenda = Agenda(uncapped, placeholders(uncapped))
    arms = tuple(
        PlannedArm(plan, arm_cost(plan.experiment, numbers, activations_bytes))
        for plan in preview(agenda, ARMS_LOOKED_AT)
    )
    stages = _stages(experiment, arms, make_plan(uncapped).stages)
    sources = [
        name for name in possible_auxiliaries(experiment) if not is_control(experiment, name)
    ]
    trials = [trial for stage in stages for trial in stage]
    at_most = experiment.checkpoints.keep_last + experiment.checkpoints.keep_best
    moved = Moved(
        data=data_bytes,
        auxiliaries=len(sources) * block_bytes(experiment.model),
        checkpoint=max(trial.checkpoint_bytes for trial in trials),
        kept=sum(trial.checkpoint_bytes * min(at_most, trial.stored) for trial in trials),
        written=written(stages),
        export=item_bytes(experiment.resources) * (numbers.parameters + numbers.buffers),
    )
    return StudyCost(numbers, arms, stages, moved, activations_bytes is not None)


def _stages(
    experiment: Experiment, arms: Sequence[PlannedArm], lines: Sequence[StageLine]
) -> tuple[tuple[ForeseenTrial, ...], ...]:
    """The opening, and what is confirmed after it, all trials one by one."""
    counts = {line.stage: line.trials for line in lines}
    searched = [arm for arm in arms if arm.plan.stage == "search"]
    more = counts.get("search", 0) - len(searched)
    opening = [*arms, *islice(cycle(searched), max(0, more))] if searched else list(arms)
    first = tuple(_foreseen(arm, counts.get("search", 0)) for arm in opening)
    again = sum(counts.get(stage, 0) for stage in ("confirm", "control", "rival"))
    return (first, tuple(islice(_confirmed(experiment, arms), again))) if again else (first,)


def _confirmed(experiment: Experiment, arms: Sequence[PlannedArm]) -> Iterator[ForeseenTrial]:
    """Trials like those that may turn out the best, in turn; each runs out."""
    borrowing = [
        arm
        for arm in arms
        if (names := arm.plan.experiment.pathway.names)
        and not any(is_control(experiment, name) for name in names)
    ]
    for arm in cycle(borrowing or arms):
        yield _foreseen(arm, 0)


def _foreseen(arm: PlannedArm, searched: int) -> ForeseenTrial:
    """A trial like this arm; one of `searched` trials that are stopped early, if it is searched."""
    experiment = arm.plan.experiment
    scheduler, epochs = experiment.search.scheduler, experiment.training.epochs
    halved = searched > 0 and arm.plan.stage == "search"
    stops = rungs(scheduler, epochs) if halved else ()
    return ForeseenTrial(
        borrowed=arm.cost.auxiliary,
        epochs=epochs,
        rungs=stops,
        going_on=going_on(max(1, searched), len(stops), scheduler.reduction_factor),
        stored_every=experiment.checkpoints.every_epochs,
        checkpoint_bytes=arm.cost.checkpoint_bytes,
    )

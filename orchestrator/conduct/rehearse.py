"""What a study will cost, before it is started: its sizes, and its time from a few timed steps.

Everything happens in this process: no Ray is started, and nothing is written, not even a cache.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.describe import describe
from m2pt.data.schema import DataAway
from m2pt.models.tokens import token_count
from m2pt.rivals.config import COMPOSED
from orchestrator.conduct.supply import key_of, sources
from orchestrator.config.experiment import Experiment, Resources
from orchestrator.config.weights import maturity
from orchestrator.errors import ClusterError, RequestError, StorageError
from orchestrator.ray_backend.capacity import on_this_machine
from orchestrator.study.cost import (
    ModelNumbers,
    PlannedArm,
    StudyCost,
    study_cost,
)
from orchestrator.study.forecast import EpochTime, Forecast, Rehearsal, exceeded, forecast

if TYPE_CHECKING:
    from m2pt.measure import TrainingTime

TRAINING_SECONDS = 1.0
"""For timing steps, without and with a pathway each."""
PRETRAINING_SECONDS = 1.5
"""For timing the steps of all pre-trainings together."""

_CHANGES_A_STEP = ("data", "model", "training.batch_size", "training.accumulate", "resources")


@dataclass(frozen=True)
class Estimate:
    """What a study costs; `rehearsal` and `forecast` are None where nothing was measured."""

    cost: StudyCost
    rehearsal: Rehearsal | None
    forecast: Forecast | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        foreseen = None
        if self.forecast is not None:
            foreseen = {
                key: value._asdict() if hasattr(value, "_asdict") else value
                for key, value in vars(self.forecast).items()
            }
        return {
            **self.cost.as_dict(),
            "measured": None if self.rehearsal is None else asdict(self.rehearsal),
            "forecast": foreseen,
            "notes": list(self.notes),
        }


def estimate(experiment: Experiment, *, measured: bool = True) -> Estimate:
    """Work out what a study costs; for the time of it a few steps are trained, for seconds.

    Raises `RequestError` for data that cannot be read or a model that does not fit it.
    """
    from m2pt.measure import model_size

    with _refusing("data"):
        info, stored = describe(experiment.data), _stored_bytes(experiment.data)
    with _refusing("model"):
        size = model_size(experiment.model, info)
        tokens = token_count(experiment.model.tokenizer, info)
    numbers = ModelNumbers(size.parameters, size.buffers, tokens, size.head)
    cost = study_cost(experiment, numbers, data_bytes=stored)
    if not measured:
        return Estimate(cost, None, None, ())
    heaviest = max(cost.arms, key=lambda arm: arm.cost.auxiliary)
    rehearsal, activations = _rehearse(experiment, heaviest)
    cost = study_cost(experiment, numbers, data_bytes=stored, activations_bytes=activations)
    foreseen = forecast(
        cost.stages,
        rehearsal,
        workers=experiment.resources.workers,
        gangs=rehearsal.gangs or experiment.resources.concurrent_trials,
    )
    notes = (*_notes(experiment, rehearsal), *exceeded(experiment.budget, foreseen))
    return Estimate(cost, rehearsal, foreseen, notes)


def _rehearse(experiment: Experiment, heaviest: PlannedArm) -> tuple[Rehearsal, int]:
    """Time a few steps; also the bytes that autograd keeps of one of the plain target."""
    from m2pt import measure
    from m2pt.data.load import load

    began, resources, cpus = time.perf_counter(), experiment.resources, os.cpu_count() or 1
    threads = max(1, min(int(resources.cpus_per_worker), cpus))
    with _refusing("data"):
        dataset = load(experiment.data)
    config = replace(experiment.training_config(), pathway=None, rival=None)
    borrowing = heaviest.plan.experiment.pathway
    with measure.machine(threads, accelerator=resources.gpus_per_worker > 0) as here:
        timed = partial(
            measure.time_training,
            dataset=dataset,
            workers=resources.workers,
            device=here.device,
            seconds=TRAINING_SECONDS,
        )
        plain, pathway = timed(config, auxiliaries={}), None
        if borrowing.names:
            blocks = measure.stand_ins(experiment.model, dataset.info, borrowing.names)
            pathway = timed(replace(config, pathway=borrowing.pathway), auxiliaries=blocks)
        pretraining = _pretraining_seconds(experiment, here.device)
    steps = ceil(len(dataset.train) / experiment.training.batch_size)
    rehearsal = Rehearsal(
        machine=here.name,
        accelerator=here.device != "cpu",
        gangs=_gangs_here(resources),
        samples=plain.step.measured_batch,
        of_samples=ceil(
            min(experiment.training.batch_size, len(dataset.train)) / resources.workers
        ),
        plain=_epoch_time(plain, steps),
        pathway=None if pathway is None else _epoch_time(pathway, steps),
        borrowed=heaviest.cost.auxiliary,
        pretraining=pretraining,
        took=time.perf_counter() - began,
    )
    return rehearsal, plain.activation_bytes


def _pretraining_seconds(experiment: Experiment, device: str) -> dict[str, float]:
    """Of each auxiliary that is to be made here, by name."""
    from m2pt.data.load import load
    from m2pt.measure import time_pretraining

    wanted = {maturity(name)[0]: one.pretrain for name, one in sources(experiment).items()}
    making = {name: config for name, config in wanted.items() if config is not None}
    found = {}
    for name, config in making.items():
        with _refusing(f"{key_of(name)}.pretrain"):
            dataset = load(config.data)
            seconds = PRETRAINING_SECONDS / len(making)
            step = time_pretraining(
                config,
                experiment.model,
                dataset,
                seconds=seconds,
                workers=experiment.resources.workers,
                device=device,
            )
        steps = ceil(len(dataset.train) / config.batch_size)
        found[name] = config.epochs * steps * step.seconds
    return found


def _epoch_time(timed: "TrainingTime", steps: int) -> EpochTime:
    return EpochTime(timed.step.seconds, steps, timed.evaluation_seconds, timed.checkpoint_seconds)


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Raise `RequestError` where data or model are not as they must be, or `StorageError`."""
    try:
        yield
    except DataAway as error:
        raise StorageError(f"{where}: {error}") from error
    except (ValueError, OSError) as error:
        raise RequestError(f"{where}: {error}") from error


def _gangs_here(resources: Resources) -> int:
    """How many gangs this machine holds at once, at most `concurrent_trials`; or 0."""
    try:
        return on_this_machine(resources).gangs(resources)
    except ClusterError:
        return 0


def _stored_bytes(config: DataConfig) -> int:
    """Of the data's files, as they are stored."""
    from m2pt.data.files import find

    if config.source in EMBEDDED:
        return 0
    places = [config.source, *([config.test_source] if config.test_source else [])]
    return sum(file.size_bytes for place in places for file in find(place).files)


def _notes(experiment: Experiment, rehearsal: Rehearsal) -> Iterator[str]:
    """What the prediction leaves out, in words."""
    resources = experiment.resources
    if not rehearsal.gangs:
        yield (
            "this machine cannot hold one trial as `resources` asks for it: times are for "
            f"{resources.concurrent_trials} gangs on machines like this one"
        )
    if resources.gpus_per_worker and not rehearsal.accelerator:
        yield (
            f"resources.gpus_per_worker is {resources.gpus_per_worker:g}, and this machine has no "
            "accelerator: times are those of its CPU"
        )
    if resources.workers > 1:
        yield "the exchange of gradients between workers is not in the times"
    if resources.compile:
        yield "steps were timed without torch.compile"
    if composed := [kind for kind in experiment.search.rivals if kind in COMPOSED]:
        yield (
            f"{' and '.join(composed)} of search.rivals run the auxiliary as well: they take "
            "longer than the arms with a pathway, as which they were counted"
        )
    if rehearsal.samples < rehearsal.of_samples:
        yield (
            f"a step on {rehearsal.of_samples} samples takes long here: steps on "
            f"{rehearsal.samples} were timed and multiplied"
        )
    changing = [
        path
        for path in experiment.search.space
        if any(f"{path}.".startswith(f"{key}.") for key in _CHANGES_A_STEP)
    ]
    if changing:
        yield f"{', '.join(changing)} is searched: times are those of the file's own value"

"""How large a model is, and how long its steps take here: a few real ones, timed.

For predictions before a study is started. Everything runs in this process through the same loops
that a study runs through; nothing is written, and only a few batches are asked for.
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from m2pt.data.config import DataInfo
from m2pt.data.order import permutation
from m2pt.data.samples import Batch, Dataset, First, Samples
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.mae import MaskedAutoencoding
from m2pt.training.loop import EpochReport, Training
from m2pt.training.recipe import TrainingConfig
from m2pt.training.state import to_bytes
from m2pt.training.target import BlockWeights
from m2pt.training.world import World
from m2pt.weights.blocks import block_weights

PROBE_SAMPLES = 2
"""In the first steps; they grow as long as there is time."""
_REPEATS = 5
_ENDLESS = 1_000_000  # epochs: a loop is left as soon as enough was seen
_EVALUATED = 4  # the loop evaluates so many times the samples of a micro-batch at once
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSize:
    """How many numbers a plain model learns, how many more its state dict holds, and how many of
    those that it learns are its head's."""

    parameters: int
    buffers: int
    head: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step on a whole batch.

    `measured_batch` is smaller where a step on a whole batch takes too long: then the time of a
    step on so many samples was multiplied.
    """

    seconds: float
    measured_batch: int


@dataclass(frozen=True)
class TrainingTime:
    """One worker training one configuration.

    Attributes:
        evaluation_seconds: for this worker's share of the validation split.
        checkpoint_seconds: to copy the state and turn it into bytes, without storing them.
        activation_bytes: what autograd keeps for the backward pass of one micro-batch.
    """

    step: StepTime
    evaluation_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Machine:
    """Where it is measured: a torch device, and how a person would call it."""

    device: str
    name: str


@contextmanager
def machine(threads: int, *, accelerator: bool) -> Iterator[Machine]:
    """The first accelerator where one is wanted and there is one, else the CPU.

    Meanwhile torch computes with `threads` threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if accelerator and torch.cuda.is_available():
            yield Machine("cuda:0", torch.cuda.get_device_name(0))
        else:
            yield Machine("cpu", f"{threads} of {os.cpu_count()} CPUs")
    finally:
        torch.set_num_threads(before)


def model_size(config: ModelConfig, info: DataInfo) -> ModelSize:
    """Counted without taking memory. Raises ValueError where the tokenizer does not fit."""
    with torch.device("meta"):
        model = build_model(config, info, seed=0)
    learned = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.numel() for tensor in model.state_dict().values())
    head = sum(parameter.numel() for parameter in model.get_submodule("head").parameters())
    return ModelSize(learned, held - learned, head)


def stand_ins(config: ModelConfig, info: DataInfo, names: Sequence[str]) -> dict[str, BlockWeights]:
    """Fresh weights in the shape of each auxiliary: steps take as long on them as on real ones."""
    return dict.fromkeys(names, block_weights(build_model(config, info, seed=1)))


def time_training(
    config: TrainingConfig,
    dataset: Dataset,
    auxiliaries: Mapping[str, BlockWeights],
    *,
    workers: int,
    device: str,
    seconds: float,
) -> TrainingTime:
    """Train for about `seconds` seconds as one of `workers` workers would.

    Not in it: the exchange of gradients between workers, and torch.compile.
    """
    samples = len(dataset.train)
    share = min(ceil(config.recipe.batch_size / workers), samples)
    loop = _TrainingLoop(config, dataset, auxiliaries, device)
    timed = _timed(
        loop.reports,
        lambda report: report.seconds["train"],
        batch=share,
        samples=samples,
        seconds=seconds,
    )
    evaluated = median(report.seconds["evaluate"] for report in timed.reports) / loop.evaluated
    began = perf_counter()
    state = to_bytes(loop.training.capture())
    return TrainingTime(
        step=timed.step,
        evaluation_seconds=evaluated * ceil(len(dataset.validation) / workers),
        checkpoint_seconds=perf_counter() - began,
        checkpoint_bytes=len(state),
        activation_bytes=round(loop.kept_bytes * ceil(share / config.recipe.accumulate)),
    )


def time_pretraining(
    config: PretrainConfig,
    model: ModelConfig,
    dataset: Dataset,
    *,
    seconds: float,
    workers: int = 1,
    device: str = "cpu",
) -> StepTime:
    """As `time_training`, for masked autoencoding, in fp32."""

    def reports(batch: int, steps: int) -> Iterator[EpochReport]:
        short = replace(config, epochs=_ENDLESS, batch_size=batch)
        few = replace(dataset, train=_First(dataset.train, batch * steps))
        yield from MaskedAutoencoding(
            short, model, dataset=few, world=World(device=device)
        ).epochs()

    samples = len(dataset.train)
    batch = ceil(min(config.batch_size, samples) / workers)
    timed = _timed(
        reports,
        lambda report: report.seconds["train"],
        batch=batch,
        samples=samples,
        seconds=seconds,
    )
    return timed.step


class _TrainingLoop:
    """The loop over the first samples of a data set, again and again."""

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        auxiliaries: Mapping[str, BlockWeights],
        device: str,
    ) -> None:
        self._config, self._dataset, self._device = config, dataset, device
        self._auxiliaries = auxiliaries
        self.training: Training
        self.evaluated = 0
        """Samples of the validation split that each report speaks of."""
        self.kept_bytes = 0.0
        """What autograd keeps of each sample for the backward pass, once there are reports."""

    def reports(self, batch: int, steps: int) -> Generator[EpochReport, None, None]:
        """An epoch of `steps` steps on `batch` samples each, for as long as it is asked for."""
        config, dataset = self._config, self._dataset
        accumulate = max(1, min(config.recipe.accumulate, batch // PROBE_SAMPLES))
        at_once = _EVALUATED * ceil(batch / accumulate)
        validation = _First(dataset.validation, min(at_once, batch * steps))
        self.evaluated = len(validation)
        recipe = replace(
            config.recipe,
            epochs=_ENDLESS,
            warmup_epochs=0,
            batch_size=batch,
            accumulate=accumulate,
        )
        numerics = replace(config.numerics, compile=False)  # it would write to its own cache
        few = replace(dataset, train=_First(dataset.train, batch * steps), validation=validation)
        short = replace(config, recipe=recipe, numerics=numerics)
        self.training = Training(short, few, self._auxiliaries, world=World(device=self._device))
        with closing(self.training.epochs()) as reports:
            if not self.kept_bytes:  # the first probe: one step, one micro-batch
                report, kept = self._noting_what_is_kept(reports)
                self.kept_bytes = kept / batch
                yield report
            yield from reports

    def _noting_what_is_kept(
        self, reports: Generator[EpochReport, None, None]
    ) -> tuple[EpochReport, int]:
        """The next report, and the bytes that autograd saved on the way to it, without weights."""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            report = next(reports)
        own = {p.untyped_storage().data_ptr() for p in self.training.model.parameters()}
        return report, sum(size for place, size in kept.items() if place not in own)


class _First(First):
    """As samples to train on."""

    _samples: Samples

    def __init__(self, samples: Samples, count: int) -> None:
        super().__init__(samples, count)

    def order(self, seed: int) -> Tensor:
        return permutation(len(self), seed)

    def batch(self, indices: Sequence[int] | Tensor, **how: Any) -> Batch:
        return self._samples.batch(indices, **how)


@dataclass(frozen=True)
class _Timed(Generic[T]):
    reports: list[T]
    step: StepTime


def _timed(
    loop: Callable[[int, int], Iterator[T]],
    of: Callable[[T], float],
    *,
    batch: int,
    samples: int,
    seconds: float,
) -> _Timed[T]:
    """Time steps on `batch` of `samples` samples, for about `seconds` seconds.

    `loop(batch, steps)` gives a report of each epoch, which took `of(report)` seconds. The first
    epoch warms up and does not count. Where a step on a whole batch takes longer than `seconds`,
    the largest that does not is multiplied.
    """
    until = perf_counter() + 3 * seconds  # on a busy machine a step may take many times a guess
    size, larger = 0, min(PROBE_SAMPLES, batch)
    while larger > size:
        size = larger
        reports = _warm(loop(size, 1), 2, until)
        guess = min(map(of, reports))
        larger = min(batch, int(size * seconds / guess))
    if size < batch:
        return _Timed(reports, StepTime(guess * batch / size, size))
    steps = max(1, min(int(seconds / guess / (_REPEATS + 1)), samples // batch))
    repeats = max(1, min(_REPEATS, int(seconds / guess)))
    reports = _warm(loop(batch, steps), repeats, until)
    return _Timed(reports, StepTime(median(map(of, reports)) / steps, batch))


def _warm(reports: Iterator[T], most: int, until: float) -> list[T]:
    """`most` reports after the first; fewer, but one at least, when it is past `until`."""
    next(reports)
    found = [next(reports)]
    while len(found) < most and perf_counter() < until:
        found.append(next(reports))
    return found

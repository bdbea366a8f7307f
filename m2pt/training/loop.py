"""The training loop: a generator of epoch reports.

It trains and yields; it never saves, logs or knows where it runs (`session.drive` joins it to a
place). All that it draws at random follows from (seed, epoch, rank), so a state needs no
generators' states, and the same training resumed is the same bit for bit.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from math import ceil
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from m2pt.data.samples import Batch, Dataset
from m2pt.models.build import build_model
from m2pt.models.norm import synchronise
from m2pt.pathway.config import Pathway
from m2pt.pathway.reparam import (
    attach_pathway,
    clamp_scales,
    computed_once,
    frozen_auxiliary_names,
    merge_and_reset,
    set_progress,
)
from m2pt.pathway.scale import envelope_at
from m2pt.training import metrics, probe, snapshot
from m2pt.training.average import Average
from m2pt.training.batches import global_batches, micro_batches, order_seed, steps_per_epoch
from m2pt.training.evaluate import evaluate
from m2pt.training.mixing import build_mix
from m2pt.training.numerics import (
    arithmetic,
    compiled_graphs,
    contained,
    dtype_of,
    runnable,
    seed_everything,
)
from m2pt.training.optim import build_optimizer, rate_factor, resting_at, set_rates
from m2pt.training.progress import beat
from m2pt.training.recipe import TrainingConfig
from m2pt.training.report import EpochReport as EpochReport
from m2pt.training.sharding import Shards, clip_gradients
from m2pt.training.state import State
from m2pt.training.target import BlockWeights, TargetWeights
from m2pt.training.tasks import LEARNING
from m2pt.training.world import World, check_ready
from m2pt.weights.start import start_from
from m2pt.weights.started import Started
from m2pt.weights.whole import WholeWeights


class Training:
    """One trial: a target, its pathway and its optimiser, `epoch` epochs along.

    With `world.size` above 1 the caller has initialised the default process group, and every rank
    makes the same calls.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset,
        auxiliaries: Mapping[str, BlockWeights],
        *,
        target_weights: TargetWeights | None = None,
        world: World = World(),  # noqa: B008  # a frozen value
    ) -> None:
        """Build the model from `config.seed`, or on `target_weights`, and attach `auxiliaries`.

        Args:
            config: everything that decides the result.
            dataset: the data that `config.data` names, loaded.
            auxiliaries: canonical block weights by name; empty for a baseline.
            target_weights: what the target starts from: canonical weights, at least of its blocks.
            world: this worker among all workers.

        Raises:
            ValueError: weights, pathway, recipe and data do not fit each other.
            RuntimeError: a world of several workers without a process group.
        """
        check_ready(world)
        _check_auxiliaries(config.pathway, auxiliaries)
        self.config, self.world, self.epoch = config, world, 0
        self._dataset, self._recipe = dataset, config.recipe
        self._mix = build_mix(config.recipe, dataset.info)
        self.model = build_model(config.model, dataset.info, seed=config.seed)
        self.started: Started | None = None
        if target_weights is not None:
            self.started = start_from(self.model, target_weights, dataset.info.modality)
        self.model.to(world.device, dtype_of(config.numerics))
        if config.pathway is not None:  # after the move: W' may be of a narrower type
            attach_pathway(self.model, auxiliaries, config.pathway)
        if config.recipe.train == "probe":
            probe.freeze(self.model)
        self._batch_norms = synchronise(self.model) if world.size > 1 else []
        self._digests = self._what_it_stands_on(auxiliaries, target_weights)  # of whole weights
        self._shards = Shards(self.model, world) if world.shards else None
        self._gathered: State | None = None
        self._optimizer = build_optimizer(self.model, config.recipe)
        self._average: Average | None = None
        if config.recipe.ema_decay is not None:
            self._average = Average(probe.learned(self.model), config.recipe.ema_decay)
        self._steps = steps_per_epoch(len(dataset.train), config.recipe.batch_size)
        self._envelope: float | None = None

    def epochs(self) -> Generator[EpochReport, None, None]:
        """Train the epochs that are left, one report each; closing it early leaves no trace.

        Raises:
            FloatingPointError: a loss is no longer finite; names epoch and step.
        """
        numerics = self.config.numerics
        with runnable(self.model, numerics, self.world) as (trained, evaluated):
            while self.epoch < self._recipe.epochs:
                self._gathered = None  # memory holds one state at most, and none in an epoch
                # The process is its caller's again whenever this generator rests.
                with contained(numerics, self.world.device):
                    report = self._train_and_evaluate(trained, evaluated)
                    self._gathered = self._gather()
                yield report

    def capture(self) -> State:
        """A copy of all that training changed so far. Talks to no other rank.

        A sharded training was gathered at the end of its last epoch, by rank 0, which alone has
        it.

        Raises:
            RuntimeError: it is sharded, and this is another rank or no epoch was trained yet.
        """
        if self._shards is None:
            return self._taken()
        if self._gathered is None:
            raise RuntimeError(
                "capture: a sharded training is gathered on rank 0, at the end of each epoch"
            )
        return self._gathered

    def settle(self) -> None:
        """Leave the model with the weights that count at the end: the averaged ones, where there
        are any. For evaluation and export; the training does not go on from there.
        """
        if self._average is not None:
            self._average.swap()

    def restore(self, state: State) -> None:
        """Go on from `state`, on any number of workers; call it before `epochs`.

        Raises:
            ValueError: the state is not of this training; names what differs, changes nothing.
        """
        self.epoch = snapshot.put_back(
            state,
            self.model,
            self._optimizer,
            config=self.config,
            digests=self._digests,
            average=self._average,
        )
        self._set_progress(self.epoch * self._steps)

    def _taken(self, *, keep: bool = True) -> State:
        return snapshot.take(
            self.model,
            self._optimizer,
            config=self.config,
            epoch=self.epoch,
            digests=self._digests,
            keep=keep,
            average=self._average,
        )

    def _gather(self) -> State | None:
        """Of a sharded training, what `capture` is to give on rank 0, while all ranks are here."""
        if self._shards is None:
            return None
        first = self.world.rank == 0
        taken = self._taken(keep=first)
        return taken if first else None

    def _train_and_evaluate(self, trained: nn.Module, evaluated: nn.Module) -> EpochReport:
        started = perf_counter()
        numbers = {"train/loss": self._train(trained)}
        self.epoch += 1
        self._set_progress(self.epoch * self._steps)
        trained_at = perf_counter()
        with nullcontext() if self._average is None else self._average.in_place():
            found = evaluate(
                evaluated,
                self._dataset.validation,
                self._evaluation_batch(),
                self.config.numerics,
                world=self.world,
            )
        metrics.check_finite(found["loss"], f"validation loss after epoch {self.epoch}")
        numbers |= {f"val/{name}": value for name, value in found.items()}
        numbers["learning_rate"] = self._recipe.learning_rate * self._factor(
            self.epoch * self._steps - 1
        )
        if self.config.pathway is not None:
            numbers["pathway/norm_ratio"] = metrics.norm_ratio(self.model)
        if self.config.numerics.compile:
            numbers["compile/graphs"] = float(compiled_graphs())
        seconds = {"train": trained_at - started, "evaluate": perf_counter() - trained_at}
        return EpochReport(
            epoch=self.epoch,
            epochs=self._recipe.epochs,
            metrics=numbers,
            scales=metrics.mean_scales(self.model),
            seconds=seconds,
        )

    def _train(self, module: nn.Module) -> float:
        """One pass over the training data; returns the mean loss of its samples."""
        world, recipe, samples = self.world, self._recipe, self._dataset.train
        seed_everything(world.device, self.config.seed, self.epoch, world.rank)
        self._merge_where_due()
        module.train()
        if recipe.train == "probe":
            probe.rest(self.model)
        losses = metrics.StepLosses(self._steps, world)
        order = samples.order(order_seed(self.config.seed, self.epoch))
        batches = global_batches(order, recipe.batch_size)
        shares = [
            micro_batches(batch, rank=world.rank, size=world.size, accumulate=recipe.accumulate)
            for batch in batches
        ]
        read = samples.stream(
            [indices for pieces in shares for indices, _ in pieces],
            epoch=self.epoch,
            seed=self.config.seed,
            views=recipe.repeats,
            workers=world.loader_workers,
        )
        with closing(read):
            for step, (batch, pieces) in enumerate(zip(batches, shares, strict=True)):
                self._prepare_step(self.epoch * self._steps + step)
                weights = [weight / recipe.repeats for _, weight in pieces]
                losses.add(step, self._descend(module, read, weights))
                losses.note_size(step, len(batch))
                losses.check(self.epoch + 1, step)
        return losses.mean()

    def _descend(self, module: nn.Module, read: Iterator[Batch], weights: list[float]) -> Tensor:
        """One step of the optimiser over the next micro-batches; this rank's share of the loss."""
        losses = []
        with self._weights_computed_once(len(weights)):
            for number, weight in enumerate(weights, start=1):
                for norm in self._batch_norms:
                    norm.counted = weight > 0
                with _no_exchange(module, self._shards, last=number == len(weights)):
                    loss = self._loss(module, next(read)) * weight
                    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
                losses.append(loss.detach())
        if self._shards is not None:
            self._shards.exchange_scales()
        if self._recipe.clip_grad is not None:
            clip_gradients(self.model, self._recipe.clip_grad)
        self._optimizer.step()
        if self.config.pathway is not None and self.config.pathway.scale.clamp is not None:
            clamp_scales(self.model)
        if self._average is not None:
            self._average.update()
        return torch.stack(losses).double().sum()

    def _weights_computed_once(self, micro_batches: int) -> AbstractContextManager[None]:
        """W + λW' for all micro-batches of a step, where nothing waits for their gradients."""
        alone = self.world.size == 1 and not self.config.numerics.compile
        if micro_batches == 1 or self.config.pathway is None or not alone:
            return nullcontext()
        return computed_once(self.model)

    def _merge_where_due(self) -> None:
        """At the start of an epoch: a state is always of before, whoever goes on from it."""
        pathway = self.config.pathway
        every = None if pathway is None else pathway.scale.merge_every
        if every is not None and self.epoch and self.epoch % every == 0:
            merge_and_reset(self.model)
            for group in self._optimizer.param_groups:
                if group["role"] == "scale":
                    for value in group["params"]:
                        self._optimizer.state.pop(value, None)

    def _prepare_step(self, step: int) -> None:
        beat()
        progress = self._set_progress(step)
        pathway = self.config.pathway
        resting = set() if pathway is None else resting_at(pathway, progress)
        set_rates(self._optimizer, self._factor(step), resting=resting)
        self._optimizer.zero_grad(set_to_none=True)

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Loss summed over the samples of a micro-batch, in the type of the weights."""
        numerics, device = self.config.numerics, self.world.device
        inputs, labels = batch
        inputs = inputs.to(device, dtype_of(numerics), non_blocking=True)
        targets = labels.to(device, non_blocking=True)
        learning, smoothing = LEARNING[self._dataset.info.task], self._recipe.label_smoothing
        given = learning.given(targets)
        if self._mix is not None:
            inputs, targets = self._mix(inputs, targets)
            targets, smoothing = targets.to(inputs.dtype), 0.0
        with arithmetic(numerics, device):
            output = module(inputs, *given)
        return learning.loss(output.to(inputs.dtype), targets, smoothing)

    def _set_progress(self, step: int) -> float:
        """Tell the pathway how far training is; returns t in [0, 1]."""
        progress = step / (self._recipe.epochs * self._steps)
        pathway = self.config.pathway
        if pathway is not None:
            factor = envelope_at(pathway.scale.envelope, progress)
            if factor != self._envelope:  # telling the model costs a walk through its modules
                set_progress(self.model, progress)
            self._envelope = factor
        return progress

    def _factor(self, step: int) -> float:
        recipe = self._recipe
        return rate_factor(
            step,
            total_steps=recipe.epochs * self._steps,
            warmup_steps=round(recipe.warmup_epochs * self._steps),
            floor=recipe.min_learning_rate / recipe.learning_rate,
        )

    def _evaluation_batch(self) -> int:
        """Without gradients, four times a micro-batch fits where a micro-batch trains."""
        return 4 * ceil(self._recipe.batch_size / (self.world.size * self._recipe.accumulate))

    def _what_it_stands_on(
        self, auxiliaries: Mapping[str, BlockWeights], target: TargetWeights | None
    ) -> dict[str, str]:
        """Digests of what a state leaves out, and must yet find unchanged."""
        frozen: Mapping[str, Tensor] = snapshot.frozen_weights(self.model)
        if self.started is not None and target is not None:
            # What is resampled may differ in the last digit on another machine.
            made, source = self.started.resampled & frozen.keys(), WholeWeights.of(target).tensors
            own = {name: weight for name, weight in frozen.items() if name not in made}
            frozen = own | {f"target/{name}": source[name] for name in made}
        borrowed = frozen_auxiliary_names(self.model)
        if borrowed and self.config.pathway is not None and self.config.pathway.prepare != "none":
            # What is made of them may differ in the last digit on another machine.
            own = {name: weight for name, weight in frozen.items() if name not in borrowed}
            given = auxiliaries.items()
            frozen = own | {f"{name}/{key}": w for name, found in given for key, w in found.items()}
        digest = snapshot.digest_of(frozen)
        return {"data": self._dataset.info.digest, "frozen_auxiliaries": digest}


def _check_auxiliaries(pathway: Pathway | None, auxiliaries: Mapping[str, BlockWeights]) -> None:
    if pathway is None and auxiliaries:
        raise ValueError(
            f"pathway: null is the baseline, but auxiliaries were given: {sorted(auxiliaries)}"
        )
    if pathway is not None and not auxiliaries:
        raise ValueError("pathway: needs at least one auxiliary; for a baseline set it to null")


def _no_exchange(
    module: nn.Module, shards: Shards | None, *, last: bool
) -> AbstractContextManager[None]:
    """Gradients are exchanged once per step: with the last micro-batch."""
    if shards is not None:
        shards.exchange_when(last)
    if last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    exchange: AbstractContextManager[None] = module.no_sync()
    return exchange

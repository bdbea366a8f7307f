"""Masked autoencoding: makes an auxiliary of any modality from samples without labels.

As in MAE (images), AudioMAE, VideoMAE and Point-MAE: most tokens are hidden, the encoder sees the
rest, and a light decoder predicts what was hidden. Tokenizer and blocks are those of
`build_model`, so the blocks fit any target of the same width and depth.

Like the training loop it is a generator of epoch reports that never saves or logs. What it draws
follows from (seed, epoch, sample), whoever computes it, so a run that goes on from a state is the
same bit for bit, and on several workers it is the same to rounding.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.later import plain
from m2pt.models.config import ModelConfig
from m2pt.models.norm import synchronise
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.network import encoder_of, seed_of, seeded_network, whole_of
from m2pt.pretrain.targets import visible_and_masked
from m2pt.training import snapshot
from m2pt.training.batches import global_batches, micro_batches, steps_per_epoch
from m2pt.training.numerics import arithmetic, compiled_graphs, contained, dtype_of, runnable
from m2pt.training.progress import beat
from m2pt.training.recipe import Numerics
from m2pt.training.report import EpochReport
from m2pt.training.state import State
from m2pt.training.world import World, check_ready, sum_over
from m2pt.weights.blocks import block_weights
from m2pt.weights.whole import WholeWeights

LOSS = "pretrain/loss"
"""The metric of each epoch: the mean loss of a sample over its masked tokens."""


class MaskedAutoencoding:
    """One pre-training run, `epoch` epochs along (a `training.session.Resumable`).

    Everything random in it comes from `config.seed`, and the caller's random state is left alone:
    the same arguments on the same machine give the same weights, bit for bit. With `world.size`
    above 1 the caller has initialised the default process group, and every rank makes the same
    calls.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: ModelConfig,
        *,
        dataset: Dataset | None = None,
        numerics: Numerics = Numerics(),  # noqa: B008  # a frozen value
        world: World = World(),  # noqa: B008  # a frozen value
    ) -> None:
        """`model` gives width, depth and heads; the tokenizer is the one of `config`.

        `dataset` is `config.data` where that is loaded already.

        Raises:
            DataError: the data is not there or cannot be used.
            ValueError: the tokenizer does not fit the samples, or leaves no token to see or hide.
            RuntimeError: a world of several workers without a process group.
        """
        check_ready(world)
        self.config, self.world, self.epoch = config, world, 0
        self._data, self._numerics = dataset or load(config.data), numerics
        self._encoder = encoder_of(config, model)
        network = seeded_network(self._encoder, self._data.info, config)
        self._network = network.to(world.device, dtype_of(numerics))
        self._batch_norms = synchronise(network) if world.size > 1 else []
        self._optimizer = torch.optim.AdamW(
            [one for one in network.parameters() if one.requires_grad],
            config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.05,
        )
        self._steps = steps_per_epoch(len(self._data.train), config.batch_size)

    def epochs(self) -> Generator[EpochReport, None, None]:
        """Train the epochs that are left, one report each, with the metric `LOSS`.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        with runnable(self._network, self._numerics, self.world) as (trained, _):
            while self.epoch < self.config.epochs:
                began = perf_counter()
                # The process is its caller's again whenever this generator rests.
                with contained(self._numerics, self.world.device):
                    metrics = {LOSS: self._train(trained)}
                if self._numerics.compile:
                    metrics["compile/graphs"] = float(compiled_graphs())
                self.epoch += 1
                seconds = {"train": perf_counter() - began}
                yield EpochReport(self.epoch, self.config.epochs, metrics, {}, seconds)

    def capture(self) -> State:
        """A copy of all that training changed so far. Talks to no other rank."""
        return snapshot.take(
            self._network,
            self._optimizer,
            config=self._whole(),
            epoch=self.epoch,
            digests={"data": self._data.info.digest},
        )

    def restore(self, state: State) -> None:
        """Go on from `state`, on any number of workers; call it before `epochs`.

        Raises:
            ValueError: the state is not of this run; names what differs, changes nothing.
        """
        self.epoch = snapshot.put_back(
            state,
            self._network,
            self._optimizer,
            config=self._whole(),
            digests={"data": self._data.info.digest},
        )

    def block_weights(self) -> dict[str, Tensor]:
        """Canonical block weights of the encoder, on the CPU, as they are now."""
        return block_weights(self._network.encoder)

    def whole_weights(self) -> WholeWeights:
        """All of the encoder that a target can start from, on the CPU, as it is now."""
        return whole_of(self._network, self._data.info)

    def _train(self, network: nn.Module) -> float:
        """One pass over the training data; returns the mean loss of its samples."""
        world, seed, samples = self.world, self.config.seed, self._data.train
        generator = torch.Generator().manual_seed(seed_of(seed, f"epoch {self.epoch}"))
        order = samples.order(seed_of(seed, f"order {self.epoch}"))
        batches = global_batches(order, self.config.batch_size)
        shares = [
            micro_batches(torch.arange(len(one)), rank=world.rank, size=world.size, accumulate=1)[0]
            for one in batches
        ]
        pieces = [batch[places] for batch, (places, _) in zip(batches, shares, strict=True)]
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        read = samples.stream(pieces, epoch=self.epoch, seed=seed, workers=world.loader_workers)
        with closing(read):
            for step, (batch, (places, weight)) in enumerate(zip(batches, shares, strict=True)):
                beat()
                self._prepare_step(step, counted=weight > 0)
                # for the whole batch on every rank: a sample's mask is its own wherever it is
                drawn = torch.rand((len(batch), self._network.tokens), generator=generator)
                masks = visible_and_masked(drawn[places])
                part = len(places) / len(batch) if weight else 0.0
                loss = self._update(network, next(read)[0], masks, part * world.size)
                total += len(batch) * loss / world.size
        mean = float(sum_over(world, total)) / len(samples)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"pretrain, epoch {self.epoch + 1}: the loss is {mean}; "
                f"learning_rate {self.config.learning_rate} is too high"
            )
        return mean

    def _prepare_step(self, step: int, *, counted: bool) -> None:
        done, steps = self.epoch * self._steps + step, self.config.epochs * self._steps
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _share_of_rate(done, steps)
        for norm in self._batch_norms:
            norm.counted = counted
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self, network: nn.Module, samples: Tensor, masks: Tensor, weight: float) -> Tensor:
        """One step of the optimizer; this rank's share of the loss before it, `weight` times."""
        device, numerics = self.world.device, self._numerics
        inputs = samples.to(device, dtype_of(numerics), non_blocking=True)
        with arithmetic(numerics, device):
            loss: Tensor = network(inputs, masks.to(device, non_blocking=True)) * weight
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.detach().double()

    def _whole(self) -> "_Whole":
        recipe = plain(self.config)
        for name in ("data", "keep_epochs"):  # the former is beside it, the latter changes nothing
            recipe.pop(name, None)
        return _Whole(self.config.data, recipe, self._encoder, self._numerics)


def pretrain(
    config: PretrainConfig, model: ModelConfig, *, dataset: Dataset | None = None
) -> Iterator[EpochReport]:
    """The reports of one pre-training run alone; `MaskedAutoencoding` also gives the weights.

    Raises:
        ValueError: as `MaskedAutoencoding`.
    """
    yield from MaskedAutoencoding(config, model, dataset=dataset).epochs()


@dataclass(frozen=True)
class _Whole:
    """Everything that decides the weights, as a state remembers it."""

    data: DataConfig
    recipe: dict[str, Any]
    model: ModelConfig
    numerics: Numerics


def _share_of_rate(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth, then half a cosine to 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

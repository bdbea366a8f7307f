"""Masked autoencoding: makes an auxiliary of any modality from samples without labels.

As in MAE (images), AudioMAE, VideoMAE and Point-MAE: most tokens are hidden, the encoder sees the
rest, and a light decoder predicts what was hidden. Tokenizer and blocks are those of
`build_model`, so the blocks fit any target of the same width and depth.

B: batch, L: tokens, V: visible tokens, M: masked tokens, D: width, E: width of the decoder.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from m2pt.data.config import DataInfo
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig
from m2pt.models.point import PointEmbed
from m2pt.models.tokens import token_count
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.targets import (
    chamfer_loss,
    group_targets,
    patch_loss,
    patch_targets,
    visible_and_masked,
)
from m2pt.training.progress import beat
from m2pt.weights.blocks import block_weights


@dataclass(frozen=True)
class PretrainReport:
    """`epoch` (from 1) is done: mean loss over its masked tokens, and how long it took."""

    epoch: int
    loss: float
    seconds: float


class MaskedAutoencoding:
    """One pre-training run.

    Everything random in it comes from `config.seed`, and the caller's random state is left alone:
    the same arguments on the same machine give the same weights, bit for bit.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: ModelConfig,
        *,
        dataset: Dataset | None = None,
        device: str = "cpu",
        loader_workers: int = 2,
    ) -> None:
        """`model` gives width, depth and heads; the tokenizer is the one of `config`.

        `dataset` is `config.data` where that is loaded already; `loader_workers` threads read
        ahead where it is streamed.

        Raises:
            DataError: the data is not there or cannot be used.
            ValueError: the tokenizer does not fit the samples, or leaves no token to see or hide.
        """
        self.config = config
        self._data = dataset or load(config.data)
        self._device, self._loader_workers = device, loader_workers
        encoder = replace(
            model,
            tokenizer=config.tokenizer,
            drop_path=0.0,
            class_token=False,
            pool="mean",
            positions="learned",
        )
        self._network = _seeded_network(encoder, self._data.info, config).to(device)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
        )
        self._step = 0

    def epochs(self) -> Iterator[PretrainReport]:
        """Trains, and yields a report after each epoch.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        for epoch in range(self.config.epochs):
            began = time.perf_counter()
            loss = self._train(epoch)
            yield PretrainReport(epoch + 1, loss, time.perf_counter() - began)

    def block_weights(self) -> dict[str, Tensor]:
        """Canonical block weights of the encoder, on the CPU, as they are now."""
        return block_weights(self._network.encoder)

    def _train(self, epoch: int) -> float:
        count, size, seed = len(self._data.train), self.config.batch_size, self.config.seed
        generator = torch.Generator().manual_seed(_seed_of(seed, f"epoch {epoch}"))
        order = self._data.train.order(_seed_of(seed, f"order {epoch}"))
        pieces = [order[first : first + size] for first in range(0, count, size)]
        total = torch.zeros((), dtype=torch.float64)
        read = self._data.train.stream(pieces, epoch=epoch, seed=seed, workers=self._loader_workers)
        with closing(read):
            for samples, _ in read:
                beat()
                total += len(samples) * self._update(samples, generator)
        mean = float(total) / count
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"pretrain, epoch {epoch + 1}: the loss is {mean}; "
                f"learning_rate {self.config.learning_rate} is too high"
            )
        return mean

    def _update(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """One step of the optimizer; the loss before it."""
        steps = self.config.epochs * math.ceil(len(self._data.train) / self.config.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _share_of_rate(self._step, steps)
        order = visible_and_masked((len(samples), self._network.tokens), generator)
        loss: Tensor = self._network(samples.to(self._device), order.to(self._device))
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._step += 1
        return loss.detach().double().cpu()


def pretrain(
    config: PretrainConfig, model: ModelConfig, *, dataset: Dataset | None = None
) -> Iterator[PretrainReport]:
    """The reports of one pre-training run alone; `MaskedAutoencoding` also gives the weights.

    Raises:
        ValueError: as `MaskedAutoencoding`.
    """
    yield from MaskedAutoencoding(config, model, dataset=dataset).epochs()


class _Network(nn.Module):
    """Encoder, decoder and loss."""

    def __init__(self, model: ModelConfig, info: DataInfo, config: PretrainConfig) -> None:
        super().__init__()
        self.tokens = token_count(model.tokenizer, info)
        self.masked = _masked_count(config.mask_ratio, self.tokens)
        self.tokenizer = model.tokenizer
        # Not the seed itself: a target of the same modality and seed would start as the same model.
        seed = _seed_of(config.seed, "encoder")
        self.encoder: Any = build_model(model, info, seed=seed)  # Any: timm is without types
        width = _decoder_width(model)
        self.encoder_norm = nn.LayerNorm(model.width)
        self.bridge = nn.Linear(model.width, width)
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_bridge = nn.Linear(model.width, width)
        blocks = [Block(width, model.heads, qkv_bias=True) for _ in range(config.decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.predict = nn.Linear(width, _values_per_token(model, info))

    def forward(self, samples: Tensor, order_BL: Tensor) -> Tensor:
        """The loss on the tokens that come last in `order_BL`."""
        visible_BV, masked_BM = order_BL.tensor_split([self.tokens - self.masked], dim=1)
        tokens_BLD, position_BLD, wanted = self._tokenize(samples)
        seen_BVD = self.encoder.blocks(_pick(tokens_BLD + position_BLD, visible_BV))
        places_BLE = _pick(self.position_bridge(position_BLD), order_BL)
        known_BVE = self.bridge(self.encoder_norm(seen_BVD))
        hidden_BME = self.hidden_token.expand(len(samples), self.masked, -1)
        decoded_BLE = self.decoder(torch.cat([known_BVE, hidden_BME], dim=1) + places_BLE)
        predicted = self.predict(decoded_BLE[:, -self.masked :])
        loss = patch_loss if wanted.ndim == 3 else chamfer_loss
        return loss(predicted, _pick(wanted, masked_BM))

    def _tokenize(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and positions (B, L, D), and what each token stands for (B, L, ...)."""
        embed = self.encoder.patch_embed
        if isinstance(embed, PointEmbed):
            relative, centres = embed.group(samples)
            return embed.encode(relative), embed.position(centres), group_targets(relative)
        tokens = embed(samples)
        position = self.encoder.pos_embed.expand(len(samples), -1, -1)
        return tokens, position, patch_targets(samples, self.tokenizer)


def _seeded_network(model: ModelConfig, info: DataInfo, config: PretrainConfig) -> _Network:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed_of(config.seed, "decoder"))
        return _Network(model, info, config)


def _seed_of(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose."""
    digest = hashlib.sha256(f"m2pt pretrain {seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _masked_count(ratio: float, tokens: int) -> int:
    if tokens < 2:
        raise ValueError(
            f"tokenizer: masked autoencoding needs 2 tokens or more, but a sample has {tokens}; "
            "take smaller patches"
        )
    return min(max(1, round(ratio * tokens)), tokens - 1)


def _decoder_width(model: ModelConfig) -> int:
    """Half the encoder's width where the heads divide that."""
    half = model.width // 2
    return half if half and half % model.heads == 0 else model.width


def _values_per_token(model: ModelConfig, info: DataInfo) -> int:
    tokenizer = model.tokenizer
    if info.modality == "point":
        return 3 * tokenizer.group_size
    depth = tokenizer.tubelet if info.modality == "video" else 1
    return info.shape[0] * depth * tokenizer.patch**2


def _share_of_rate(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth, then half a cosine to 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _pick(values: Tensor, indices_BM: Tensor) -> Tensor:
    """`values` (B, L, ...) at `indices_BM`: (B, M, ...)."""
    shape = (*indices_BM.shape, *[1] * (values.ndim - 2))
    return values.gather(1, indices_BM.view(shape).expand(*indices_BM.shape, *values.shape[2:]))

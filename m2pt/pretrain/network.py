"""What is trained by masked autoencoding: an encoder of `build_model`, and a light decoder.

B: batch, L: tokens, V: visible tokens, M: masked tokens, D: width, E: width of the decoder.
"""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from m2pt.data.config import DataInfo
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig
from m2pt.models.point import PointEmbed
from m2pt.models.tokens import token_count, token_grid
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.targets import chamfer_loss, group_targets, patch_loss, patch_targets
from m2pt.weights.whole import WholeWeights, whole_weights


class Network(nn.Module):
    """Encoder, decoder and loss; what of the encoder takes no part in that is frozen."""

    def __init__(self, model: ModelConfig, info: DataInfo, config: PretrainConfig) -> None:
        super().__init__()
        self.tokens = token_count(model.tokenizer, info)
        self.masked = _masked_count(config.mask_ratio, self.tokens)
        self.tokenizer = model.tokenizer
        # Not the seed itself: a target of the same modality and seed would start as the same model.
        seed = seed_of(config.seed, "encoder")
        self.encoder: Any = build_model(model, info, seed=seed)  # Any: timm is without types
        width = _decoder_width(model)
        self.encoder_norm = nn.LayerNorm(model.width)
        self.bridge = nn.Linear(model.width, width)
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_bridge = nn.Linear(model.width, width)
        blocks = [Block(width, model.heads, qkv_bias=True) for _ in range(config.decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.predict = nn.Linear(width, _values_per_token(model, info))
        for unused in (self.encoder.norm, self.encoder.fc_norm, self.encoder.head):
            unused.requires_grad_(False)  # else several workers would wait for their gradients

    def forward(self, samples: Tensor, order_BL: Tensor) -> Tensor:
        """The loss on the tokens that come last in `order_BL`, a mean over the samples."""
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


def seeded_network(model: ModelConfig, info: DataInfo, config: PretrainConfig) -> Network:
    """A network drawn from `config.seed`; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(config.seed, "decoder"))
        return Network(model, info, config)


def encoder_of(config: PretrainConfig, model: ModelConfig) -> ModelConfig:
    """The encoder: blocks as in `model`, the tokenizer of `config`, and nothing unusual."""
    return replace(
        model,
        tokenizer=config.tokenizer,
        drop_path=0.0,
        class_token=False,
        pool="mean",
        positions="learned",
    )


def whole_of(network: Network, info: DataInfo) -> WholeWeights:
    """Copies, on the CPU, of all that a target can start from: tokenizer, positions, blocks with
    their norms, and the norm after them as `norm`."""
    copies = {name: value.detach().cpu().clone() for name, value in _kept(network).items()}
    return whole_weights(copies, "encoder", info.modality, _grid(network, info))


def whole_to_be(config: PretrainConfig, model: ModelConfig, info: DataInfo) -> WholeWeights:
    """Of what `whole_of` a pre-training gives, names and shapes: on torch's meta device."""
    with torch.device("meta"):
        network = seeded_network(encoder_of(config, model), info, config)
    return WholeWeights(_kept(network), info.modality, _grid(network, info))


def _kept(network: Network) -> dict[str, Tensor]:
    unused = ("head.", "norm.", "fc_norm.")
    own = network.encoder.state_dict()
    found = {name: value for name, value in own.items() if not name.startswith(unused)}
    return found | {f"norm.{name}": one for name, one in network.encoder_norm.state_dict().items()}


def _grid(network: Network, info: DataInfo) -> tuple[int, ...] | None:
    return None if info.modality == "point" else token_grid(network.tokenizer, info)


def seed_of(seed: int, purpose: str) -> int:
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


def _pick(values: Tensor, indices_BM: Tensor) -> Tensor:
    """`values` (B, L, ...) at `indices_BM`: (B, M, ...)."""
    shape = (*indices_BM.shape, *[1] * (values.ndim - 2))
    return values.gather(1, indices_BM.view(shape).expand(*indices_BM.shape, *values.shape[2:]))

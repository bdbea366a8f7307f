"""What a target may have beside timm's plain blocks: a class token, fixed positions, another head.

B: batch, L: tokens, D: width of the model.
"""

from itertools import pairwise
from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from m2pt.models.config import ModelConfig

_HIDDEN, _DROPPED = 256, 0.5  # of Point-MAE's head
_TEMPERATURE = 10_000.0


def pooling(config: ModelConfig) -> dict[str, Any]:
    """How timm's `VisionTransformer` is told what the head sees; "" is all tokens."""
    kinds = {"mean": "avg", "token": "token", "token_max": ""}
    return {"class_token": config.class_token, "global_pool": kinds[config.pool]}


def furnish(model: nn.Module, config: ModelConfig, grid: tuple[int, ...], classes: int) -> None:
    """Give a built model the positions and the head that timm does not have."""
    if config.positions == "fixed":
        table_LD = sine_positions(grid, config.width)
        if config.class_token:
            table_LD = torch.cat([torch.zeros(1, config.width), table_LD])
        model.pos_embed = nn.Parameter(table_LD[None], requires_grad=False)
    if config.pool == "token_max":
        model.head = TokenMaxHead(config.width, classes)


def sine_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Sines and cosines (L, D) that do not learn: of row and column as in MAE and AudioMAE, and of
    the place in the sequence, over all three axes, as in VideoMAE."""
    if len(grid) == 2:
        table: Tensor = build_sincos2d_pos_embed(list(grid), width)
        return table
    places = torch.arange(torch.Size(grid).numel(), dtype=torch.float64)[:, None]
    angles = places / _TEMPERATURE ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


class TokenMaxHead(nn.Module):
    """Class token and maximum over all others, then an MLP, as in Point-MAE; with LayerNorm where
    that has BatchNorm, for a batch may be of one cloud."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        sizes = (2 * width, _HIDDEN, _HIDDEN)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
            layers.append(nn.Dropout(_DROPPED))
        self.layers = nn.Sequential(*layers, nn.Linear(_HIDDEN, classes))

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Logits (B, classes)."""
        seen = torch.cat([tokens_BLD[:, 0], tokens_BLD[:, 1:].amax(dim=1)], dim=1)
        logits: Tensor = self.layers(seen)
        return logits

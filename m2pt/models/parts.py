"""Part segmentation of point clouds: from tokens of groups back to the points.

B: batch, N: points, G: groups, D: width of the model, F: channels of the features (three times D),
C: categories, P: parts.
"""

from math import ceil
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import one_hot

from m2pt.models.config import NormKind
from m2pt.models.norm import BatchNorm
from m2pt.models.point import PointEmbed

_NEIGHBOURS = 3


class PartTransformer(VisionTransformer):  # type: ignore[misc]  # timm has no types
    """A timm transformer whose head tells the part of each point, as in Point-MAE's segmentation.

    The features are those after one third, two thirds and all of the blocks (4, 8 and 12 of 12),
    normalised.
    """

    def __init__(
        self, *, categories: int, parts: int, norm: NormKind = "layer", **transformer: Any
    ) -> None:
        """`transformer` is what timm's is told, without a pool or classes."""
        super().__init__(num_classes=0, global_pool="", **transformer)
        depth, width = len(self.blocks), self.embed_dim
        self.taps = tuple(dict.fromkeys(ceil(depth * third / 3) - 1 for third in (1, 2, 3)))
        self.num_classes = parts
        # A bias that is the same everywhere the head's BatchNorm takes away again: its gradient
        # would be nothing but rounding, which AdamW makes whole steps of.
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=norm != "batch")
        self.head = PartHead(
            width, len(self.taps) * width, categories=categories, parts=parts, norm=norm
        )

    def forward(self, points_BN3: Tensor, category_B: Tensor) -> Tensor:
        """Logits (B, N, P) of clouds whose categories (int64) are known, as the field has it."""
        embed = self.patch_embed
        assert isinstance(embed, PointEmbed)
        tokens_BGD, centres_BG3 = embed.tokens_and_centres(points_BN3)
        features = []
        for number, block in enumerate(self.blocks):
            tokens_BGD = block(tokens_BGD)
            if number in self.taps:
                features.append(self.norm(tokens_BGD))
        spread_BNG = interpolation(points_BN3, centres_BG3)
        logits: Tensor = self.head(
            torch.cat(features, dim=2), spread_BNG, points_BN3, category_B=category_B
        )
        return logits


class PartHead(nn.Module):
    """Features of groups, a point's place, the whole cloud and its category to parts.

    Its widths are Point-MAE's (reference: section 4.3), and smaller where the transformer is
    narrower than they are. Without that head's dropout, which draws otherwise on another number of
    workers, and without BatchNorm of the category. Where a linear of something concatenated meets
    what is the same for many points, that part of it is worked out once: interpolating and
    repeating are linear.
    """

    def __init__(
        self, width: int, features: int, *, categories: int, parts: int, norm: NormKind
    ) -> None:
        super().__init__()
        biased = norm != "batch"  # what is the same everywhere, BatchNorm takes away again
        wide, middle, narrow = min(1024, 4 * width), min(512, 2 * width), min(256, width)
        named = min(64, width)
        self.categories = categories
        self.from_groups = nn.Linear(features, 4 * width, bias=False)
        self.from_place = nn.Linear(3, 4 * width, biased)
        self.propagate = nn.Sequential(
            _normalised(4 * width, norm),
            nn.Linear(4 * width, wide, biased),
            _normalised(wide, norm),
        )
        self.from_category = nn.Sequential(
            nn.Linear(categories, named, bias=False), nn.LeakyReLU(0.2)
        )
        self.from_cloud = nn.Linear(2 * features + named, middle, bias=False)
        self.from_point = nn.Linear(wide, middle, biased)
        self.tell = nn.Sequential(
            _normalised(middle, norm),
            nn.Linear(middle, narrow, biased),
            _normalised(narrow, norm),
            nn.Linear(narrow, parts),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, features_BGF: Tensor, spread_BNG: Tensor, points_BN3: Tensor, *, category_B: Tensor
    ) -> Tensor:
        """Logits (B, N, P); `spread_BNG` are the weights that interpolate (`interpolation`)."""
        groups_BGE = self.from_groups(features_BGF)
        points_BNE = self.propagate(spread_BNG @ groups_BGE + self.from_place(points_BN3))
        category_BC = one_hot(category_B, self.categories).to(points_BN3.dtype)
        cloud = [
            features_BGF.amax(dim=1),
            features_BGF.mean(dim=1),
            self.from_category(category_BC),
        ]
        cloud_B1E = self.from_cloud(torch.cat(cloud, dim=1))[:, None]
        logits: Tensor = self.tell(self.from_point(points_BNE) + cloud_B1E)
        return logits


def interpolation(points_BN3: Tensor, centres_BG3: Tensor) -> Tensor:
    """How much of each centre's value a point takes, (B, N, G); nothing here is learned.

    Of the three nearest centres, by the inverse of the squared distance, as in PointNet++. A
    matrix, because a product with it takes less memory than gathering three features for each
    point, and its gradient is deterministic.
    """
    with torch.no_grad():
        exact = "donot_use_mm_for_euclid_dist"
        apart_BNG = torch.cdist(points_BN3, centres_BG3, compute_mode=exact).square()
        count = min(_NEIGHBOURS, centres_BG3.shape[1])
        near = apart_BNG.topk(count, dim=2, largest=False)
        weights = (near.values + 1e-8).reciprocal()
        shares = weights / weights.sum(dim=2, keepdim=True)
        return torch.zeros_like(apart_BNG).scatter(2, near.indices, shares)


def _normalised(channels: int, norm: NormKind) -> nn.Module:
    return nn.Sequential(
        BatchNorm(channels) if norm == "batch" else nn.LayerNorm(channels), nn.ReLU()
    )

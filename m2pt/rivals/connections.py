"""What joins the tokens of a target to those of frozen auxiliaries: CALM's way, and GATS's.

Both add to the target's tokens the output of a linear that starts at 0, so that a target starts as
the plain one, bit for bit. Norms stand in front of everything that attends, for tokens between
blocks of two models are of any size (chosen: the papers' own text, as far as we have it, does not
say; a public CALM implementation has them there as well).

B: batch, L: tokens, D: width of the models, S: the width that GATS attends in.
"""

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

_EPS = 1e-6


class CrossAttention(nn.Module):
    """CALM, section 3.1: H + Σ f_cross(f_proj(H'), H) over the auxiliaries' tokens H'.

    f_proj is a linear, f_cross attention with queries of the target's tokens and keys and values
    of the projected ones. The paper has one auxiliary; several are added up.
    """

    def __init__(self, width: int, heads: int, auxiliaries: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.readers = nn.ModuleList(_Reader(width, heads) for _ in range(auxiliaries))

    def forward(self, tokens_BLD: Tensor, streams: Sequence[Tensor]) -> Tensor:
        """Tokens (B, L, D), given those of each auxiliary."""
        asking_BLD = self.norm(tokens_BLD)
        for reader, stream_BLD in zip(self.readers, streams, strict=True):
            tokens_BLD = tokens_BLD + reader(asking_BLD, stream_BLD)
        return tokens_BLD


class _Reader(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        _start_at_zero(self.attention.out_proj)

    def forward(self, asking_BLD: Tensor, stream_BLD: Tensor) -> Tensor:
        seen_BLD = self.norm(self.project(stream_BLD))
        read: Tensor = self.attention(asking_BLD, seen_BLD, seen_BLD, need_weights=False)[0]
        return read


class GatherAttendScatter(nn.Module):
    """GATS: tokens of all models into one width, a transformer block over them, the target's back.

    Gathered are all tokens at a paired depth; the paper's window over the latest of each modality
    is for streams in time. Only the target is steered: the auxiliaries are read.
    """

    def __init__(self, width: int, inner: int, heads: int, auxiliaries: int) -> None:
        super().__init__()
        models = 1 + auxiliaries
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=_EPS) for _ in range(models))
        self.gather = nn.ModuleList(nn.Linear(width, inner) for _ in range(models))
        self.attend: nn.Module = Block(inner, heads, mlp_ratio=4.0, qkv_bias=True)
        self.scatter = nn.Linear(inner, width)
        _start_at_zero(self.scatter)

    def forward(self, tokens_BLD: Tensor, streams: Sequence[Tensor]) -> Tensor:
        """Tokens (B, L, D), given those of each auxiliary."""
        parts = zip(self.norms, self.gather, (tokens_BLD, *streams), strict=True)
        gathered_BMS = torch.cat([gather(norm(part)) for norm, gather, part in parts], dim=1)
        attended_BLS = self.attend(gathered_BMS)[:, : tokens_BLD.shape[1]]
        scattered_BLD: Tensor = tokens_BLD + self.scatter(attended_BLS)
        return scattered_BLD


def _start_at_zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)

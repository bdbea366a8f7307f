"""Tiny blocks of architectures that no installed library has, in the shapes and names of theirs.

Written from the facts in their papers and from the names in their checkpoints; eps is torch's.
"""

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody calls it
from torch import Tensor, nn


def attend(q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
    """Softmax attention; B: batch, H: heads, N: tokens, C: channels of a head -> (B, N, HC)."""
    weights_BHNN = (q_BHNC @ k_BHNC.transpose(-2, -1) / q_BHNC.shape[-1] ** 0.5).softmax(-1)
    out_BNM: Tensor = (weights_BHNN @ v_BHNC).transpose(1, 2).flatten(2)
    return out_BNM


def in_heads(x_BNM: Tensor, heads: int) -> list[Tensor]:
    """q, k and v, each (B, H, N, C), of what a fused linear gives."""
    batch, tokens, _ = x_BNM.shape
    return list(x_BNM.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class VideoMaeAttention(nn.Module):
    """Biases of query and value apart; the key has none."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight).chunk(3, dim=-1)
        fused = torch.cat([q + self.q_bias, k, v + self.v_bias], dim=-1)
        out: Tensor = self.proj(attend(*in_heads(fused, self.heads)))
        return out


class PointAttention(nn.Module):
    """No bias of q, k and v at all."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(attend(*in_heads(self.qkv(x), self.heads)))
        return out


class PreBlock(nn.Module):
    """Pre-LN, around one of the attentions above; LayerScale as BEiT names it, where asked for."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), attention, nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ImageBindBlock(nn.Module):
    """torch's attention, norms with an underscore."""

    def __init__(self, dim: int, heads: int, hidden: int, *, extra: bool = False) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True, add_bias_kv=extra)
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class ClipMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_fc(x)
        out: Tensor = self.c_proj(y * torch.sigmoid(1.702 * y))
        return out


class ClipBlock(nn.Module):
    """CLIP as its authors wrote it: torch's attention, QuickGELU."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_1, self.mlp, self.ln_2 = nn.LayerNorm(dim), ClipMlp(dim, hidden), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Reference(nn.Module):
    """What converted weights must compute, from timm's names, in any norm style and activation."""

    def __init__(self, state: dict[str, Tensor], block: int, heads: int) -> None:
        super().__init__()
        prefix = f"blocks.{block}."
        self.heads, self.post, self.quick, self.eps = heads, False, False, 1e-5
        self.part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self._norm("norm1", x + self._attention(x))
            return self._norm("norm2", x + self._mlp(x))
        x = x + self._attention(self._norm("norm1", x))
        return x + self._mlp(self._norm("norm2", x))

    def _attention(self, x: Tensor) -> Tensor:
        fused = self._linear("attn.qkv", x)
        return self._scaled("ls1", self._linear("attn.proj", attend(*in_heads(fused, self.heads))))

    def _mlp(self, x: Tensor) -> Tensor:
        y = self._linear("mlp.fc1", x)
        y = y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y)
        return self._scaled("ls2", self._linear("mlp.fc2", y))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.part[f"{name}.weight"], self.part.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.part[f"{name}.weight"], self.part[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        gamma = self.part.get(f"{name}.gamma")
        return x if gamma is None else x * gamma

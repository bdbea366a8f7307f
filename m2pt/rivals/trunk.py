"""A frozen auxiliary that runs beside a target: its blocks, and nothing before or after them.

The modalities differ, so the auxiliary's own tokenizer cannot read the target's samples: its blocks
get the target's tokens, behind the target's tokenizer and positions, which is also what they meet
in a pathway. Only canonical block weights are known of an auxiliary, its four linears of each
block: its norms have no scale and no offset here, whatever they had where it was trained, and its
heads are as many as the target's. So CALM and GATS may do better with the whole auxiliary.

B: batch, L: tokens, D: width.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from m2pt.pathway.auxiliary import (
    Auxiliary,
    depth_of,
    fitting_copy,
    linear_of,
    tensor_of,
)
from m2pt.pathway.config import LINEARS
from m2pt.pathway.coverage import LINEAR_PATHS, layer_name


class Trunk(nn.Module):
    """The blocks of an auxiliary; what they make of tokens after some of them."""

    def __init__(
        self, like: nn.Module, named: tuple[str, Auxiliary], *, heads: int, taps: int
    ) -> None:
        """Copy the auxiliary's blocks, in the target's dtype and on its device.

        Args:
            like: a block of the target, of the same shape.
            named: the auxiliary, and its name for errors.
            heads: of its attention.
            taps: after how many of its blocks, evenly spaced up to the last, tokens are given.

        Raises:
            ValueError: it has fewer blocks than that, or they do not fit the target's.
        """
        super().__init__()
        name, auxiliary = named
        depth = depth_of(auxiliary, f"auxiliary {name!r}")
        if depth < taps:
            raise ValueError(
                f"auxiliary {name!r}: has {depth} blocks, and {taps} connections to as many of "
                "them are asked for; raise rival.every"
            )
        self.taps = tuple((number + 1) * depth // taps - 1 for number in range(taps))
        self.blocks = nn.ModuleList(_block(like, named, block, heads) for block in range(depth))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, tokens_BLD: Tensor) -> list[Tensor]:
        """Tokens (B, L, D) after each tap. No gradient passes: the auxiliary is only read."""
        found = []
        for number, block in enumerate(self.blocks):
            tokens_BLD = block(tokens_BLD)
            if number in self.taps:
                found.append(tokens_BLD)
        return found


def _block(like: nn.Module, named: tuple[str, Auxiliary], number: int, heads: int) -> nn.Module:
    """timm's block, as the target's, without memory of its own until it is given its weights."""
    name, auxiliary = named
    state: dict[str, Tensor] = {}
    for linear in LINEARS:
        own = linear_of(like, linear)
        if own is None or not isinstance(own.weight, Tensor):
            raise ValueError(f"target: its blocks have no linear {linear}")
        where = f"auxiliary {name!r}: {layer_name(number, linear)} beside the target's blocks"
        path, weight = LINEAR_PATHS[linear], own.weight
        state[f"{path}.weight"] = fitting_copy(
            tensor_of(auxiliary, number, linear), weight, f"{where}, weight"
        )
        bias = tensor_of(auxiliary, number, linear, "bias")
        zeros = weight.new_zeros(len(weight))
        state[f"{path}.bias"] = (
            zeros if bias is None else fitting_copy(bias, zeros, f"{where}, bias")
        )
    hidden, width = state["mlp.fc1.weight"].shape
    block: nn.Module = Block(
        width,
        heads,
        mlp_ratio=(hidden + 0.5) / width,  # timm rounds down
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6, elementwise_affine=False),
        device="meta",
    )
    block.load_state_dict(state, assign=True)
    return block

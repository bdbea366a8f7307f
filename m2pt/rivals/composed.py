"""A target with frozen auxiliaries beside it, joined by connections every few blocks."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from m2pt.models.parts import PartTransformer
from m2pt.pathway.auxiliary import Auxiliary, blocks_of
from m2pt.rivals.config import Rival, why_no_task
from m2pt.rivals.connections import CrossAttention, GatherAttendScatter
from m2pt.rivals.trunk import Trunk

NAME = "rival"
"""The submodule of a target that holds auxiliaries and connections."""


class Composition(nn.Module):
    """Frozen auxiliaries, and what joins them to a target.

    Attributes:
        trunks: the auxiliaries.
        connections: in the order of the blocks that they follow.
        places: those blocks' numbers, from 0.
    """

    def __init__(
        self, trunks: nn.ModuleList, connections: nn.ModuleList, places: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.trunks, self.connections, self.places = trunks, connections, places

    def along(self, blocks: nn.Sequential, tokens_BLD: Tensor) -> Tensor:
        """What a target's blocks and the connections make of tokens (B, L, D)."""
        by_trunk = [trunk(tokens_BLD.detach()) for trunk in self.trunks]
        streams = list(zip(*by_trunk, strict=True))
        for number, block in enumerate(blocks):
            tokens_BLD = block(tokens_BLD)
            if number in self.places:
                at = self.places.index(number)
                tokens_BLD = self.connections[at](tokens_BLD, streams[at])
        return tokens_BLD


class ComposedBlocks(nn.Sequential):
    """A target's blocks, under the names that they had, which run along a composition."""

    def __init__(self, blocks: nn.Module, composition: Composition) -> None:
        super().__init__(*blocks.children())
        # In a tuple, so that it is no submodule: whoever goes through the blocks finds blocks.
        self._beside = (composition,)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Tokens (B, L, D) after the last block and connection."""
        return self._beside[0].along(self, tokens_BLD)


def compose(
    target: nn.Module, auxiliaries: dict[str, Auxiliary], rival: Rival, *, seed: int
) -> None:
    """Join frozen auxiliaries to a target in place; its function stays the same, bit for bit.

    Connections are drawn from `seed`, and no random number of the caller's is used up.

    Raises:
        ValueError: blocks or auxiliaries do not fit; the target is then as it was.
    """
    if isinstance(target, PartTransformer):
        raise ValueError(f"rival.kind: {why_no_task(rival.kind, 'parts')}")
    blocks = blocks_of(target, "target")
    like, of_timm = next(blocks[0].parameters()), cast(Any, blocks[0])
    width, heads = of_timm.attn.proj.out_features, of_timm.attn.num_heads
    places = rival.connections(len(blocks))
    trunks = nn.ModuleList(
        Trunk(blocks[0], named, heads=heads, taps=len(places)) for named in auxiliaries.items()
    )
    inner, own = rival.attention(width, heads)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        connections = nn.ModuleList(
            CrossAttention(width, own, len(trunks))
            if rival.kind == "calm"
            else GatherAttendScatter(width, inner, own, len(trunks))
            for _ in places
        )
    composition = Composition(trunks, connections.to(like), places)
    target.add_module(NAME, composition)
    target.blocks = ComposedBlocks(target.get_submodule("blocks"), composition)

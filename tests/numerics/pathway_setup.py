"""Tiny transformers, and hypothesis strategies over everything that a pathway can be."""

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from m2pt.pathway.config import LINEARS, Coverage, Envelope, Pathway, Scale
from m2pt.pathway.coverage import LINEAR_PATHS, layer_name, mapping, select

WIDTH, CLASSES = 12, 5


def tiny(seed: int, depth: int = 3, *, width: int = WIDTH, qkv_bias: bool = True) -> Any:
    """A ViT for images of 8 x 8, with weights large enough that every layer matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=8,
            patch_size=4,
            in_chans=1,
            num_classes=CLASSES,
            embed_dim=width,
            depth=depth,
            num_heads=3,
            mlp_ratio=2.0,
            qkv_bias=qkv_bias,
        )
        for block in model.blocks:
            for path in LINEAR_PATHS.values():
                nn.init.normal_(block.get_submodule(path).weight, std=0.3)
    return model.eval()


def images(batch: int = 2) -> Tensor:
    """Random images (batch, 1, 8, 8), always the same."""
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def auxiliaries_for(depth: int, count: int, *, width: int = WIDTH) -> dict[str, Any]:
    """So many auxiliaries; the names hide nothing of nn.Module, though they would like to."""
    return {name: tiny(100 + i, depth, width=width) for i, name in enumerate(NAMES[:count])}


NAMES = ("audio", "type", "scale_audio")


def randomise(values: Mapping[tuple[str, str], nn.Parameter], seed: int = 7) -> None:
    """Give every λ value a number of its own around ±0.5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in values.values():  # a shared one more than once, which does no harm
            drawn = torch.rand(value.shape, generator=generator) + 0.1
            value.copy_(torch.where(drawn > 0.6, 0.1 - drawn, drawn))


def expected_weights(
    target: Any,
    auxiliaries: Mapping[str, Any],
    pathway: Pathway,
    effective: Mapping[tuple[str, str], Tensor],
) -> dict[str, Tensor]:
    """W + Σ λW' in float64 by layer, straight from the definition; `target` is the plain one."""
    depth = len(target.blocks)
    partners = mapping(pathway.mapping, depth)
    weights = {}
    for block, linear in select(pathway.coverage, depth):
        layer = layer_name(block, linear)
        total = target.get_submodule(layer).weight.detach().double()
        for name, auxiliary in auxiliaries.items():
            borrowed = auxiliary.get_submodule(layer_name(partners[block], linear)).weight
            scale = effective[name, layer].detach().double()
            rows = scale.repeat_interleave(len(total) // len(scale))
            total = total + rows[:, None] * borrowed.detach().double()
        weights[layer] = total
    return weights


def coverages(depth: int) -> st.SearchStrategy[Coverage]:
    """Every form of coverage that a transformer of this depth allows."""
    counts = st.integers(1, depth)
    some_blocks = st.sets(st.integers(0, depth - 1), min_size=1).map(tuple)
    blocks = st.one_of(
        st.just("all"),
        st.builds("{}:{}".format, st.sampled_from(["first", "last", "every"]), counts),
        some_blocks,
    )
    return st.builds(Coverage, blocks, st.sets(st.sampled_from(LINEARS), min_size=1).map(tuple))


def scale_configs(init: st.SearchStrategy[float]) -> st.SearchStrategy[Scale]:
    """Every kind of λ."""
    envelopes = st.builds(
        Envelope,
        st.sampled_from(["constant", "linear", "cosine", "anneal", "hold"]),
        st.floats(0.1, 1.0),
    )
    granularity = st.sampled_from(["linear", "block", "global"])
    return st.builds(Scale, init, st.booleans(), granularity, st.booleans(), envelopes)


@st.composite
def cases(draw: st.DrawFn, init: st.SearchStrategy[float]) -> tuple[int, int, Pathway]:
    """(depth, number of auxiliaries, pathway)."""
    depth = draw(st.integers(1, 4))
    shifts = st.integers(-2 * depth, 2 * depth)
    pathway = Pathway(
        draw(coverages(depth)),
        draw(st.one_of(st.sampled_from(["identity", "reversed"]), shifts)),
        draw(scale_configs(init)),
        draw(st.booleans()),
    )
    return depth, draw(st.integers(1, len(NAMES))), pathway

"""What golden tests of public weights share: an original saved, loaded, and compared with.

`Reference` computes what timm's block does: a golden test of timm's own shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2pt.weights import Weights, load
from tests.numerics.originals import Reference

DIM, HEADS, HIDDEN, DEPTH = 16, 2, 32, 2
TOLERANCE = 1e-5
Blocks = Sequence[nn.Module]


@dataclass(frozen=True)
class Golden:
    """One architecture: how its file is written, and what of it the loader must see."""

    name: str
    save: Callable[[Path], tuple[Path, Blocks]]
    layout: str
    named: str = "auto"
    post: bool = False
    quick: bool = False
    has: tuple[str, ...] = ()
    """timm's names that must be there, beside those of blocks."""
    unused: str = ""
    """Part of a name that must be reported as unused."""
    bias: bool = True


def randomised(module: nn.Module) -> Any:
    """Every parameter drawn, norms and biases too: nothing may hide behind a zero or a one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def agree(
    weights: dict[str, Tensor], golden: Golden, blocks: Blocks, eps: float
) -> tuple[bool, float]:
    """(within tolerance, largest difference) over all blocks."""
    x = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(1))
    worst = 0.0
    for number, block in enumerate(blocks):
        reference = Reference(weights, number, HEADS)
        reference.post, reference.quick, reference.eps = golden.post, golden.quick, eps
        with torch.no_grad():
            found = block(x, None) if _asks_for_mask(block) else block(x)
            wanted = found[0] if isinstance(found, tuple) else found
            worst = max(worst, float((reference(x) - wanted).abs().max()))
    return worst <= TOLERANCE, worst


def _asks_for_mask(block: nn.Module) -> bool:
    mask = signature(block.forward).parameters.get("attention_mask")
    return mask is not None and mask.default is Parameter.empty


def swapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values the wrong way round."""
    changed = dict(state)
    for key in [name for name in state if ".attn.qkv." in name]:
        q, k, v = state[key].chunk(3)
        changed[key] = torch.cat([q, v, k])
    return changed


def check(golden: Golden, folder: Path) -> Weights:
    path, blocks = golden.save(folder)
    weights = load(str(path), golden.named)
    state, eps = weights.state_dict(), norm_eps(blocks[0])
    assert weights.provenance.layout == golden.layout
    assert (weights.provenance.depth, weights.provenance.dim) == (len(blocks), DIM)
    assert weights.provenance.norm in ("post" if golden.post else "pre", None)
    right, worst = agree(state, golden, blocks, eps)
    assert right, f"{golden.name}: {worst:.2e}"
    control, distance = agree(swapped(state), golden, blocks, eps)
    assert not control
    assert distance > 1e-2
    plain = {name: tensor for name, tensor in state.items() if ".ls" not in name}
    right, worst = agree({**plain, **weights.blocks()}, golden, blocks, eps)
    assert right, f"{golden.name}, LayerScale folded: {worst:.2e}"
    assert set(golden.has) <= state.keys()
    assert not golden.unused or any(golden.unused in name for name in weights.unused)
    assert all(f"blocks.{i}.attn.qkv.bias" in state for i in range(DEPTH)) == golden.bias
    return weights


def norm_eps(block: nn.Module) -> float:
    return next(m.eps for m in block.modules() if isinstance(m, nn.LayerNorm))

"""What an auxiliary costs in memory, and what accumulation costs in time: ViT-S/16 at 224 px.

    python benchmarks/auxiliary_memory.py [--rounds 10] [--threads 2] [--depth 12]

Counted in one process, per kind of auxiliary: bytes of W' itself, of gradients and AdamW's moments
after a step, and of what a checkpoint would hold beyond the plain target's. Timed, interleaved in
one run: a step of four micro-batches in which W + λW' is computed once, over the same step in which
it is computed for each micro-batch, and both over the plain target's.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from m2pt.pathway.config import Pathway, Scale
from m2pt.pathway.reparam import (
    attach_pathway,
    auxiliary_names,
    computed_once,
    frozen_auxiliary_names,
)
from m2pt.training.memory import keep_freed_memory
from m2pt.training.optim import build_optimizer
from m2pt.training.recipe import Recipe

SCALE = Scale(init=0.1)  # away from 0: nothing may be saved by its being 0
KINDS = {
    "frozen": Pathway(scale=SCALE, trainable=False),
    "frozen, bf16": Pathway(scale=SCALE, trainable=False, keep="bf16"),
    "rank 8 beside bf16": Pathway(scale=SCALE, trainable="rank:8", keep="bf16"),
    "trained": Pathway(scale=SCALE),
}
MICRO_BATCHES = 4


def target_of(seed: int, depth: int) -> nn.Module:
    """ViT-S/16, or so many blocks of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = VisionTransformer(embed_dim=384, num_heads=6, depth=depth)
        return model


def images(seed: int) -> Tensor:
    """Two images of 224 px."""
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def model_of(depth: int, pathway: Pathway | None) -> nn.Module:
    """The target, with one auxiliary joined as `pathway` says."""
    target = target_of(0, depth)
    if pathway is None:
        return target
    return attach_pathway(target, {"a": target_of(1, depth)}, pathway)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor], *, once: bool
) -> None:
    """One step over several micro-batches."""
    labels = torch.arange(len(batches[0]))
    optimizer.zero_grad(set_to_none=True)
    with computed_once(model) if once else nullcontext():
        for batch in batches:
            torch.autograd.backward(cross_entropy(model(batch), labels))
    optimizer.step()


def sizes(depth: int, pathway: Pathway) -> dict[str, float]:
    """Bytes, each over the number of entries of W'."""
    model = model_of(depth, pathway)
    optimizer = build_optimizer(model, Recipe())
    step(model, optimizer, [images(0)], once=False)
    named = dict(model.named_parameters())
    theirs = [named[name] for name in auxiliary_names(model)]
    borrowed = [p for name, p in named.items() if ".auxiliary_" in name]
    entries = sum(p.numel() for p in borrowed)
    moments = sum(
        value.numel() * value.element_size()
        for p in theirs
        for key, value in optimizer.state.get(p, {}).items()
        if key != "step"
    )
    kept = [named[name] for name in auxiliary_names(model) - frozen_auxiliary_names(model)]
    return {
        "entries": entries,
        "held": _bytes(theirs) / entries,
        "gradients": _bytes([p.grad for p in theirs if p.grad is not None]) / entries,
        "moments": moments / entries,
        "checkpoint": (_bytes(kept) + moments) / entries,
    }


def accumulation(depth: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, by contestant and round."""
    batches = [images(seed) for seed in range(MICRO_BATCHES)]
    made: dict[str, tuple[Any, Any, bool]] = {}
    for name, pathway, once in (
        ("plain", None, False),
        ("for each micro-batch", KINDS["trained"], False),
        ("once", KINDS["trained"], True),
    ):
        model = model_of(depth, pathway)
        made[name] = (model, build_optimizer(model, Recipe()), once)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    draw = random.Random(0)
    for number in range(rounds + 1):
        for name in draw.sample(list(made), len(made)):
            model, optimizer, once = made[name]
            began = time.perf_counter()
            step(model, optimizer, batches, once=once)
            if number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Print both tables as JSON, one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    keep_freed_memory()
    for name, pathway in KINDS.items():
        found = _rounded(sizes(parsed.depth, pathway))
        print(json.dumps({"auxiliary": name, "bytes per entry of W'": found}))
    seconds = accumulation(parsed.depth, parsed.rounds)
    for name, values in seconds.items():
        ratios = [value / plain for value, plain in zip(values, seconds["plain"], strict=True)]
        print(json.dumps({"weights computed": name, "over plain": _quartiles(ratios)}))
    sys.stdout.flush()


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


if __name__ == "__main__":
    main()

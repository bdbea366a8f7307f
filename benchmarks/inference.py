"""What a fused model costs at inference: over the plain timm model, interleaved in one run.

    python -m benchmarks.inference [--rounds 30] [--batches 3] [--threads 2] [--batch 8]

ViT-S/16 on 224 px images. Contestants are the plain model; one whose pathway (every linear of every
block) was fused away; the same with its pathway still attached, to see what fusing saves; and the
plain one a second time, whose ratio is the machine's own unrest. In each round every contestant
takes a few batches, in turns whose order is drawn anew; its fastest is divided by the plain model's
fastest of the same round. Memory is what a batch takes beside the weights at most (CUDA's
peak; on the CPU what torch's profiler counts), and the weights themselves. Settings: `one` process
and, where there is an accelerator, `cuda` (bf16).
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.step_overhead import FP32, SCALE, Workload
from m2pt.pathway.config import Pathway
from m2pt.pathway.reparam import attach_pathway, fuse_pathway
from m2pt.training.memory import keep_freed_memory
from m2pt.training.numerics import arithmetic
from m2pt.training.recipe import Numerics

SETTINGS = ("one", "cuda")


@dataclass(frozen=True)
class Setting:
    """Where the batches run."""

    name: str
    rounds: int
    threads: int
    batches: int = 3
    """Of each contestant in a round; the fastest counts."""
    numerics: Numerics = FP32
    device: str = "cpu"
    warmup: int = 1
    """Rounds that do not count."""


@dataclass(frozen=True)
class Figure:
    """One contestant in one setting. Ratios are over the plain model: quartiles over rounds.

    Attributes:
        images_per_second: median over rounds.
        throughput_ratio: above 1 is faster than the plain model.
        weights_bytes, batch_bytes: held at rest; the most that a batch takes beside.
        memory_ratio: of both together.
    """

    setting: str
    contestant: str
    images_per_second: float
    throughput_ratio: tuple[float, float, float]
    weights_bytes: int
    batch_bytes: int
    memory_ratio: float


def contestants(workload: Workload) -> dict[str, nn.Module]:
    """The plain model first, then what is compared with it; all of the same target weights."""
    auxiliary = workload.model(seed=1)

    def attached() -> nn.Module:
        pathway = Pathway(scale=SCALE, trainable=False)
        return attach_pathway(workload.model(seed=0), {"other": auxiliary}, pathway)

    made = {
        "plain": workload.model(seed=0),
        "plain again": workload.model(seed=0),
        "fused": fuse_pathway(attached()),
        "attached": attached(),
    }
    return {name: model.eval() for name, model in made.items()}


def measure(workload: Workload, setting: Setting) -> list[Figure]:
    """Batches of all contestants, interleaved; the plain model's figure first."""
    torch.set_num_threads(setting.threads)
    keep_freed_memory()  # as a gang's workers do
    models = {name: m.to(setting.device) for name, m in contestants(workload).items()}
    images = workload.images().to(setting.device)
    order = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(setting.warmup + setting.rounds):
        taken: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(setting.batches):
            for name in order.sample(list(models), len(models)):
                taken[name].append(_seconds(models[name], images, setting))
        if number >= setting.warmup:
            for name, times in taken.items():
                found[name].append(min(times))
    return _figures(models, images, setting, found)


def _figures(
    models: dict[str, nn.Module],
    images: Tensor,
    setting: Setting,
    found: dict[str, list[float]],
) -> list[Figure]:
    memory = {
        name: (_weights(model), _batch_bytes(model, images, setting))
        for name, model in models.items()
    }
    figures = []
    for name, times in found.items():
        ratios = [plain / own for own, plain in zip(times, found["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        figures.append(
            Figure(
                setting.name,
                name,
                len(images) / statistics.median(times),
                (low, middle, high),
                *memory[name],
                sum(memory[name]) / sum(memory["plain"]),
            )
        )
    return figures


def _run(model: nn.Module, images: Tensor, setting: Setting) -> None:
    with torch.inference_mode(), arithmetic(setting.numerics, setting.device):
        model(images)
    if setting.device != "cpu":
        torch.cuda.synchronize(setting.device)


def _seconds(model: nn.Module, images: Tensor, setting: Setting) -> float:
    began = time.perf_counter()
    _run(model, images, setting)
    return time.perf_counter() - began


def _weights(model: nn.Module) -> int:
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in held.values())


def _batch_bytes(model: nn.Module, images: Tensor, setting: Setting) -> int:
    """The most that is allocated at once while a batch is computed."""
    if setting.device != "cpu":
        torch.cuda.synchronize(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
        _run(model, images, setting)
        return torch.cuda.max_memory_allocated(setting.device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        _run(model, images, setting)
    return _peak(profiler)


def _peak(profiler: torch.profiler.profile) -> int:
    """The highest sum, over time, of what a profile saw allocated and freed."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    changes = [
        (one.start_ns(), one.nbytes())  # type: ignore[attr-defined]  # torch's stub lacks it
        for one in results.events()
        if one.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        held += change
        peak = max(peak, held)
    return peak


def settings(names: Sequence[str], made_of: Setting) -> list[Setting]:
    """The settings that were asked for; without any, all that this machine has."""
    bf16 = replace(made_of, name="cuda bf16", device="cuda", numerics=Numerics("bf16"), warmup=2)
    made = {"one": made_of, "cuda": bf16}
    missing = set() if torch.cuda.is_available() else {"cuda"}
    if missing & set(names):
        sys.exit("--settings: cuda: torch finds no CUDA device here")
    return [made[name] for name in names or made if name not in missing]


def show(figures: Sequence[Figure]) -> None:
    """A table on stdout."""
    head = f"{'':<14}{'':<14}{'images/s':>10}{'over plain':>12}{'quartiles':>16}"
    print(f"{head}{'weights, MB':>13}{'batch, MB':>11}{'memory':>8}")
    for one in figures:
        low, middle, high = one.throughput_ratio
        print(
            f"{one.setting:<14}{one.contestant:<14}{one.images_per_second:10.2f}{middle:12.3f}"
            f"{f'{low:.3f} - {high:.3f}':>16}{one.weights_bytes / 1e6:13.1f}"
            f"{one.batch_bytes / 1e6:11.1f}{one.memory_ratio:8.3f}"
        )


def main() -> None:
    """Measure all settings and print a table."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", type=int, default=3, help="of each model in a round")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=[])
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    if parsed.rounds < 2:
        parser.error("--rounds: at least 2, for quartiles")
    one = Setting("one process", parsed.rounds, parsed.threads, parsed.batches)
    workload = Workload(batch=parsed.batch)
    figures = [f for setting in settings(parsed.settings, one) for f in measure(workload, setting)]
    if parsed.json:
        print(json.dumps([asdict(figure) for figure in figures]))
        return
    show(figures)


if __name__ == "__main__":
    main()

"""What a pathway costs per training step: over the plain timm model, interleaved in one run.

    python benchmarks/step_overhead.py [--rounds 30] [--steps 3] [--threads 2] [--settings one ddp]

The step is that of ViT-S/16 on 224 px images, eight at once: forward, backward, AdamW. Contestants
are the plain model, one with a frozen auxiliary, one with a trained one (every linear of every
block, learned λ: the paper's setting), and one whose pathway was fused away. In each round every
contestant takes a few steps, in turns whose order is drawn anew; its fastest step is divided by the
plain model's fastest of the same round, since what else runs on a machine can only add to a step.
Shown are medians over rounds, and quartiles. The fused model is compared with the plain
one by structure as well: modules, parameters, exported graph. Settings: `one` process, `ddp` (two
processes over gloo, half the threads each), and, where there is an accelerator, `cuda` (bf16) and
`compiled` (bf16, torch.compile).
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy

from m2pt.pathway.config import Pathway, Scale
from m2pt.pathway.reparam import attach_pathway, fuse_pathway
from m2pt.training.memory import keep_freed_memory
from m2pt.training.numerics import arithmetic, runnable
from m2pt.training.optim import build_optimizer
from m2pt.training.recipe import Numerics, Recipe
from m2pt.training.world import World

SCALE = Scale(init=0.1)  # away from 0: nothing may be saved by its being 0
CLASSES = 1000
FP32 = Numerics()
SETTINGS = ("one", "ddp", "cuda", "compiled")


@dataclass(frozen=True)
class Workload:
    """What one step trains on; the default is ViT-S/16 at 224 px."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    image: int = 224
    patch: int = 16
    batch: int = 8

    def model(self, seed: int) -> VisionTransformer:
        """A fresh plain model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VisionTransformer(
                img_size=self.image,
                patch_size=self.patch,
                embed_dim=self.width,
                depth=self.depth,
                num_heads=self.heads,
                num_classes=CLASSES,
            )

    def images(self, seed: int = 0) -> Tensor:
        """(batch, 3, image, image)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.batch, 3, self.image, self.image, generator=generator)


@dataclass(frozen=True)
class Setting:
    """Where the steps run."""

    name: str
    rounds: int
    threads: int
    """Of each process."""
    numerics: Numerics = FP32
    device: str = "cpu"
    workers: int = 1
    warmup: int = 1
    """Rounds that do not count."""
    steps: int = 3
    """Of each contestant in a round; the fastest counts."""


@dataclass(frozen=True)
class Figure:
    """One contestant in one setting. Ratios are over the plain model: quartiles over rounds."""

    setting: str
    contestant: str
    step_seconds: float
    """Forward, backward and optimiser: median over rounds."""
    step_ratio: tuple[float, float, float]
    passes_ratio: tuple[float, float, float]
    """Of forward and backward alone."""


@dataclass(frozen=True)
class Seconds:
    """One step, in parts."""

    passes: float
    whole: float


def contestants(workload: Workload) -> dict[str, nn.Module]:
    """The plain model first, then what is compared with it; all of the same target weights."""
    auxiliary = workload.model(seed=1)

    def attached(*, trainable: bool) -> nn.Module:
        pathway = Pathway(scale=SCALE, trainable=trainable)
        return attach_pathway(workload.model(seed=0), {"other": auxiliary}, pathway)

    return {
        "plain": workload.model(seed=0),
        "frozen": attached(trainable=False),
        "trainable": attached(trainable=True),
        "fused": fuse_pathway(attached(trainable=True)),
    }


def differences(plain: nn.Module, fused: nn.Module, images: Tensor) -> list[str]:
    """In what a fused model is not built as the plain one; empty when it is exactly that."""
    looks: dict[str, Callable[[nn.Module], object]] = {
        "modules": lambda model: [(name, type(part)) for name, part in model.named_modules()],
        "parameters": lambda model: [
            (name, part.shape, part.dtype, part.requires_grad)
            for name, part in model.named_parameters()
        ],
        "state": lambda model: [(key, value.shape) for key, value in model.state_dict().items()],
        "hooks": lambda model: [
            (len(part._forward_pre_hooks), len(part._forward_hooks), len(part._backward_hooks))
            for part in model.modules()
        ],
        "graph": lambda model: str(torch.export.export(model, (images,)).graph),
    }
    return [name for name, look in looks.items() if look(plain) != look(fused)]


def measure(workload: Workload, setting: Setting, world: World) -> list[Figure]:
    """Steps of all contestants, interleaved."""
    torch.set_num_threads(setting.threads)
    keep_freed_memory()  # as a gang's workers do
    with ExitStack() as stack:
        steps = {
            name: stack.enter_context(_stepping(model, workload, setting, world))
            for name, model in contestants(workload).items()
        }
        order = random.Random(0)  # the same on every worker
        found: dict[str, list[Seconds]] = {name: [] for name in steps}
        for number in range(setting.warmup + setting.rounds):
            taken: dict[str, list[Seconds]] = {name: [] for name in steps}
            for _ in range(setting.steps):
                for name in order.sample(list(steps), len(steps)):
                    taken[name].append(steps[name]())
            if number >= setting.warmup:
                for name, times in taken.items():
                    found[name].append(_fastest(times))
    return [_figure(setting.name, name, found[name], found["plain"]) for name in found]


def _fastest(times: Sequence[Seconds]) -> Seconds:
    return Seconds(min(one.passes for one in times), min(one.whole for one in times))


def _figure(setting: str, name: str, mine: Sequence[Seconds], plain: Sequence[Seconds]) -> Figure:
    def quartiles(part: Callable[[Seconds], float]) -> tuple[float, float, float]:
        ratios = [part(one) / part(other) for one, other in zip(mine, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high

    return Figure(
        setting,
        name,
        statistics.median(one.whole for one in mine),
        quartiles(lambda one: one.whole),
        quartiles(lambda one: one.passes),
    )


@contextmanager
def _stepping(
    model: nn.Module, workload: Workload, setting: Setting, world: World
) -> Iterator[Callable[[], Seconds]]:
    """What takes one step with a model and times it."""
    device = torch.device(setting.device)
    model.to(device)
    optimizer = build_optimizer(model, Recipe())
    images = workload.images(world.rank).to(device)
    labels = torch.arange(workload.batch, device=device) % CLASSES

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with runnable(model, setting.numerics, world) as (trained, _):

        def step() -> Seconds:
            if world.size > 1:
                dist.barrier()
            wait()
            began = time.perf_counter()
            with arithmetic(setting.numerics, setting.device):
                loss = cross_entropy(trained(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            wait()
            passed = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait()
            return Seconds(passed - began, time.perf_counter() - began)

        yield step


def distributed(workload: Workload, setting: Setting) -> list[Figure]:
    """`measure` on several processes of this machine; the first one's figures."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(  # type: ignore[no-untyped-call]  # torch's own has no types
            _worker, args=(workload, setting, folder), nprocs=setting.workers
        )
        found = json.loads((Path(folder) / "figures.json").read_text())
    return [_from_json(one) for one in found]


def _worker(rank: int, workload: Workload, setting: Setting, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=setting.workers
    )
    try:
        figures = measure(workload, setting, World(rank, setting.workers))
    finally:
        dist.destroy_process_group()
    if rank == 0:
        text = json.dumps([asdict(figure) for figure in figures])
        (Path(folder) / "figures.json").write_text(text)


def _from_json(one: dict[str, Any]) -> Figure:
    ratios = {name: tuple(one[name]) for name in ("step_ratio", "passes_ratio")}
    return Figure(**{**one, **ratios})


def run(workload: Workload, setting: Setting) -> list[Figure]:
    """One setting's figures, the plain model's first."""
    if setting.workers > 1:
        return distributed(workload, setting)
    return measure(workload, setting, World(device=setting.device))


def settings(names: Sequence[str], rounds: int, steps: int, threads: int) -> list[Setting]:
    """The settings that were asked for; without any, all that this machine has."""
    one = Setting("one process", rounds, threads, steps=steps)
    bf16 = replace(one, name="cuda bf16", device="cuda", numerics=Numerics("bf16"), warmup=2)
    made = {
        "one": one,
        "ddp": replace(one, name="two workers", threads=max(1, threads // 2), workers=2),
        "cuda": bf16,
        "compiled": replace(bf16, name="cuda bf16 compiled", numerics=Numerics("bf16", True)),
    }
    accelerated = {"cuda", "compiled"} if not torch.cuda.is_available() else set()
    if missing := sorted(accelerated & set(names)):
        sys.exit(f"--settings: {', '.join(missing)}: torch finds no CUDA device here")
    return [made[name] for name in names or made if name not in accelerated]


def show(figures: Sequence[Figure]) -> None:
    """A table on stdout."""
    print(f"{'':<32}{'step, s':>9}{'over plain':>12}{'quartiles':>16}{'without optimiser':>19}")
    for figure in figures:
        low, middle, high = figure.step_ratio
        print(
            f"{figure.setting:<20}{figure.contestant:<12}{figure.step_seconds:9.3f}{middle:12.3f}"
            f"{f'{low:.3f} - {high:.3f}':>16}{figure.passes_ratio[1]:19.3f}"
        )


def main() -> None:
    """Measure all settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3, help="of each model in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=[])
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    if parsed.rounds < 2:
        parser.error("--rounds: at least 2, for quartiles")
    if parsed.steps < 1:
        parser.error("--steps: at least 1")
    workload = Workload()
    models = contestants(workload)
    differs = differences(models["plain"], models["fused"], workload.images())
    del models
    figures: list[Figure] = []
    for setting in settings(parsed.settings, parsed.rounds, parsed.steps, parsed.threads):
        figures += run(workload, setting)
        print(f"measured: {setting}", file=sys.stderr, flush=True)
    if parsed.json:
        print(json.dumps({"fused_differs_in": differs, "figures": [asdict(f) for f in figures]}))
        return
    show(figures)
    print(f"the fused model differs from the plain one in: {', '.join(differs) or 'nothing'}")


if __name__ == "__main__":
    main()

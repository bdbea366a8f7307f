"""What a trial asks of the process that it runs in, and how the process gets it all back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from m2pt.training.batches import seed_words
from m2pt.training.recipe import Numerics
from m2pt.training.world import World

COMPILE_BACKEND = "inductor"
_FILL = "fill_uninitialized_memory"


def dtype_of(numerics: Numerics) -> torch.dtype:
    """Type of the weights and of the input; bf16 computes in bfloat16 but keeps float32 weights."""
    return torch.float64 if numerics.precision == "fp64" else torch.float32


def arithmetic(numerics: Numerics, device: str) -> AbstractContextManager[object]:
    """The context that a forward runs in: autocast for bf16, nothing otherwise."""
    if numerics.precision == "bf16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()


@contextmanager
def contained(numerics: Numerics, device: str) -> Iterator[None]:
    """Deterministic arithmetic inside; outside, flags and generators are as if nothing had run.

    Deterministic algorithms are asked for, not insisted on: an operation that has none warns.
    """
    with ExitStack() as stack:
        stack.enter_context(_generators_restored(device))
        for read, write, value in _flags():
            stack.callback(write, read())
            write(value)
        if numerics.compile:
            from torch._dynamo import config

            # The default is to go on without compiling, with no more than a warning.
            stack.enter_context(config.patch(fail_on_recompile_limit_hit=True))
        yield


def seed_everything(device: str, *entropy: int) -> None:
    """Seed torch (on the CPU and on `device`) and numpy from non-negative numbers."""
    seed, words = seed_words("training", *entropy)
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed(words)  # timm's Mixup draws from it


@contextmanager
def runnable(model: nn.Module, numerics: Numerics, world: World) -> Iterator[tuple[nn.Module, ...]]:
    """(module to train with, module to evaluate with): `model`, compiled and distributed as asked.

    Both share the weights of `model`, which stays as it is. Compiled code ends with the context.
    """
    inner = model
    if numerics.compile:
        forget_compiled()
        inner = cast(nn.Module, torch.compile(model, backend=COMPILE_BACKEND))
    try:
        yield (_distributed(inner, world), inner)
    finally:
        if numerics.compile:
            forget_compiled()


def compiled_graphs() -> int:
    """How many graphs were compiled since `forget_compiled`.

    Raises:
        RuntimeError: none was, though it was asked for.
    """
    from torch._dynamo.utils import counters

    graphs = int(counters["stats"]["unique_graphs"])
    if not graphs:
        raise RuntimeError(
            "compile: asked for, but nothing was compiled; set compile to false, or find out "
            "with TORCH_LOGS=dynamo why the model ran in eager mode"
        )
    return graphs


def forget_compiled() -> None:
    """Drop what the process has compiled: Dynamo keeps it by code object, across models."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def _distributed(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1 or world.shards:
        return model
    # Buffers are constants or follow the step; sending them every step costs a third of its time.
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def _generators_restored(device: str) -> Iterator[None]:
    devices = [device] if torch.device(device).type == "cuda" else []
    numpy_state = np.random.get_state()  # timm's Mixup draws from it
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # as above


def _flags() -> list[tuple[Callable[[], object], Callable[..., object], object]]:
    """(read, write, value for a trial) of each process-wide flag that changes results."""
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    return [
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, "warn"),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (partial(getattr, cudnn, "benchmark"), partial(setattr, cudnn, "benchmark"), False),
        # It would fill every new tensor with NaN first.
        (partial(getattr, memory, _FILL), partial(setattr, memory, _FILL), False),
    ]

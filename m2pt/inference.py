"""How long a model takes in use, over a plain one of the same shape: both measured in one run."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from m2pt.training.numerics import arithmetic, contained, dtype_of
from m2pt.training.recipe import Numerics

_LEAST, _MOST = 5, 201


@dataclass(frozen=True)
class InferenceTime:
    """Of a model beside a plain one, on the same batch.

    Attributes:
        ratio: seconds of the model over seconds of the plain one: the median over rounds, in each
            of which both ran once, one right after the other.
        samples_per_second: of the model, in its median round.
        rounds: how many there were.
    """

    ratio: float
    samples_per_second: float
    rounds: int


def time_inference(
    models: tuple[nn.Module, nn.Module],
    inputs: tuple[Tensor, ...],
    numerics: Numerics,
    *,
    device: str = "cpu",
    seconds: float = 0.5,
) -> InferenceTime:
    """Time (model, plain model) on a batch for about `seconds` seconds, at least five rounds.

    Whatever else the machine does meets both alike: they take turns, and which of them is first
    changes from round to round. Nothing is compiled.

    Args:
        models: on `device`, in the type of the weights that `numerics` asks for.
        inputs: what a forward takes, a batch of samples first.
        numerics: the arithmetic.
    """
    first, *others = (one.to(device) for one in inputs)
    batch = (first.to(dtype_of(numerics)), *others)
    model, plain = (one.eval() for one in models)
    with contained(numerics, device), torch.inference_mode(), arithmetic(numerics, device):
        for one in (plain, model):  # to warm up
            _seconds(one, batch, device)
        until, rounds = perf_counter() + seconds, list[tuple[float, float]]()
        while len(rounds) < _LEAST or (len(rounds) < _MOST and perf_counter() < until):
            order = (model, plain) if len(rounds) % 2 else (plain, model)
            took = {one: _seconds(one, batch, device) for one in order}
            rounds.append((took[model], took[plain]))
    return InferenceTime(
        ratio=median(ours / theirs for ours, theirs in rounds),
        samples_per_second=len(first) / median(ours for ours, _ in rounds),
        rounds=len(rounds),
    )


def _seconds(model: nn.Module, batch: tuple[Tensor, ...], device: str) -> float:
    wait: Callable[[], object] = (
        torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    )
    wait()
    began = perf_counter()
    model(*batch)
    wait()
    return perf_counter() - began

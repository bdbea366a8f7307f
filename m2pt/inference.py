"""How long a model takes in use, over a plain one of the same shape: both measured in one run."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from m2pt.training.numerics import arithmetic, contained, dtype_of
from m2pt.training.recipe import Numerics

_LEAST, _MOST = 15, 201


@dataclass(frozen=True)
class InferenceTime:
    """Of a model beside a plain one, on the same batch.

    Attributes:
        ratio: seconds of the model over seconds of the plain one, each the median over rounds in
            which both ran once, one right after the other. Medians bear it when fewer than half
            of the rounds are held up by whatever else the machine does.
        samples_per_second: of the model, in its median round.
        batch: samples in each.
        rounds: how many there were.
    """

    ratio: float
    samples_per_second: float
    batch: int
    rounds: int


def time_inference(
    models: tuple[nn.Module, nn.Module],
    inputs: tuple[Tensor, ...],
    numerics: Numerics,
    *,
    device: str = "cpu",
    seconds: float = 0.5,
) -> InferenceTime:
    """Time (model, plain model) on a batch for about `seconds` seconds, at least 15 rounds.

    Which of the two is first changes from round to round. Where so many rounds on the whole batch
    would take longer, fewer of its samples are taken. Nothing is compiled.

    Args:
        models: on `device`, in the type of the weights that `numerics` asks for.
        inputs: what a forward takes, a batch of samples first.
        numerics: the arithmetic.
    """
    model, plain = (one.eval() for one in models)
    first, *others = (one.to(device) for one in inputs)
    batch = (first.to(dtype_of(numerics)), *others)
    with contained(numerics, device), torch.inference_mode(), arithmetic(numerics, device):
        for _ in range(2):  # the first warms up, the second says how much there is time for
            both = _seconds(plain, batch, device) + _seconds(model, batch, device)
        size = max(1, min(len(first), int(len(first) * seconds / (_LEAST * both))))
        batch = tuple(one[:size] for one in batch)
        ours, theirs = list[float](), list[float]()
        until = perf_counter() + seconds
        while len(ours) < _LEAST or (len(ours) < _MOST and perf_counter() < until):
            pairs = ((model, ours), (plain, theirs))
            for one, times in pairs if len(ours) % 2 else reversed(pairs):
                times.append(_seconds(one, batch, device))
    return InferenceTime(median(ours) / median(theirs), size / median(ours), size, len(ours))


def _seconds(model: nn.Module, batch: tuple[Tensor, ...], device: str) -> float:
    """Of one forward, until the device is done."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    began = perf_counter()
    model(*batch)
    if on_gpu:
        torch.cuda.synchronize(device)
    return perf_counter() - began

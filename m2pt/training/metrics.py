"""Numbers of an epoch, gathered without making the device wait at each step."""

from math import isfinite

import torch
from torch import Tensor, nn

from m2pt.pathway.reparam import effective_scales
from m2pt.pathway.whole import looked_at
from m2pt.training.world import World, sum_over

CHECK_EVERY = 200
"""Steps between looks at the losses: each look waits for the device, and for the other ranks."""


class StepLosses:
    """The loss of each step of an epoch, over the whole batch on all ranks."""

    def __init__(self, steps: int, world: World) -> None:
        self._losses = torch.zeros(steps, dtype=torch.float64, device=world.device)
        self._sizes = [0] * steps
        self._world = world
        self._checked = 0

    def add(self, step: int, loss: Tensor) -> None:
        """Add one micro-batch's part, weighted as for DistributedDataParallel's mean."""
        self._losses[step] += loss

    def note_size(self, step: int, samples: int) -> None:
        """How many samples the step's whole batch had."""
        self._sizes[step] = samples

    def check(self, epoch: int, step: int) -> None:
        """Now and then, and at the last step: exchange losses between ranks and look at them.

        Raises:
            FloatingPointError: on every rank alike, naming the first bad step.
        """
        done = step + 1
        if done % CHECK_EVERY and done < len(self._sizes):
            return
        fresh = self._losses[self._checked : done]
        for offset, loss in enumerate(sum_over(self._world, fresh).tolist()):
            check_finite(loss, f"training loss in epoch {epoch}, step {self._checked + offset + 1}")
        self._checked = done

    def mean(self) -> float:
        """Mean loss of a sample, once all steps are checked."""
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        mean = (self._losses.cpu() / self._world.size) @ sizes / sizes.sum()
        return float(mean)


def check_finite(loss: float, where: str) -> None:
    """Raise FloatingPointError unless `loss` is a finite number."""
    if not isfinite(loss):
        raise FloatingPointError(
            f"{where} is {loss}; lower learning_rate, set clip_grad, or use precision fp32"
        )


def mean_scales(model: nn.Module) -> dict[str, float]:
    """Effective λ by metric; the mean over q, k and v where they have their own.

    Metrics are `lambda/<block>.<linear>`, whatever the auxiliary is called, so that charts lay arms
    of different auxiliaries over each other; `lambda/<auxiliary>/<block>.<linear>` where a target
    borrows from several.
    """
    effective = effective_scales(model)
    if not effective:
        return {}
    means = torch.stack([value.detach().mean() for value in effective.values()]).tolist()
    several = len({auxiliary for auxiliary, _ in effective}) > 1
    return {
        f"lambda/{auxiliary}/{short_name(layer)}"
        if several
        else f"lambda/{short_name(layer)}": mean
        for (auxiliary, layer), mean in zip(effective, means, strict=True)
    }


def short_name(layer: str) -> str:
    """`blocks.3.mlp.fc1` as `3.fc1`."""
    parts = layer.split(".")
    return f"{parts[1]}.{parts[-1]}"


def norm_ratio(model: nn.Module) -> float:
    """How much the pathway weighs: mean over its linears of ‖Σ λW'‖ / ‖W‖ (Frobenius)."""
    layers = dict.fromkeys(layer for _, layer in effective_scales(model))
    with torch.no_grad():
        ratios = [_norm_ratio(linear) for linear in looked_at(model, layers)]
    return float(torch.stack(ratios).mean())


def _norm_ratio(linear: nn.Module) -> Tensor:
    original = linear.get_parameter("parametrizations.weight.original")
    merged = linear.weight
    assert isinstance(merged, Tensor)
    ratio: Tensor = (merged - original).norm() / original.norm()
    return ratio

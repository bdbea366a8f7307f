"""BatchNorm whose statistics are those of all workers, so that their number changes nothing."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm of the last axis of x (..., E), over all others.

    In a training of several workers (`synchronise`) a micro-batch's mean and variance are those of
    its samples on all of them, and so are the running ones, on every worker the same bits.
    torch's SyncBatchNorm would do that on CUDA alone, and for any process group that happens to be
    there, in pre-training on one of its workers too; this one asks to be told, and is the same on
    the CPU. Every worker must run it equally often.
    """

    synchronised = False
    counted = True
    """Whether this worker's samples are of the batch; not where they only fill a worker's hands."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, of the same shape and type."""
        flat_NE = x.flatten(0, -2)
        if not (self.training and self.synchronised):
            plain_NE: Tensor = super().forward(flat_NE)
            return plain_NE.view_as(x)
        wide_NE, part = flat_NE.to(self.weight.dtype), float(self.counted)
        number = wide_NE.new_full((1,), part * len(wide_NE))
        totals = _over_workers(torch.cat([part * wide_NE.sum(dim=0), number]))
        count, mean_E = totals[-1].detach(), totals[:-1] / totals[-1].detach()
        centred_NE = wide_NE - mean_E
        variance_E = _over_workers(part * centred_NE.square().sum(dim=0)) / count
        self._remember(mean_E.detach(), variance_E.detach() * count / (count - 1))
        scaled_NE = centred_NE * (variance_E + self.eps).rsqrt() * self.weight + self.bias
        normal: Tensor = scaled_NE.to(x.dtype).view_as(x)
        return normal

    @torch.no_grad()
    def _remember(self, mean_E: Tensor, variance_E: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_E, self.momentum)
        self.running_var.lerp_(variance_E, self.momentum)
        self.num_batches_tracked.add_(1)


class _Sum(torch.autograd.Function):
    """The sum over all workers; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(_context: Any, own: Tensor) -> Tensor:
        return _Sum._exchanged(own)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return _Sum._exchanged(gradients[0])

    @staticmethod
    def _exchanged(own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch
def _over_workers(own: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(own)
    return total


def synchronise(model: nn.Module) -> list[BatchNorm]:
    """Let every `BatchNorm` of `model` exchange its sums with all workers; returns them."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.synchronised = True
    return norms

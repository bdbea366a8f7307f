"""λ: its envelope over training, its value, and the addition that it scales.

Shapes: n is 1, or 3 where q, k and v are scaled apart; a weight is (out, in).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from m2pt.pathway.config import Envelope, LinearName, Scale


def envelope_at(envelope: Envelope, t: float) -> float:
    """The envelope, from 0 to 1, at progress `t` of training.

    Raises:
        ValueError: `t` is outside [0, 1].
    """
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t: the progress of training in [0, 1], not {t!r}")
    done = min(t / envelope.until, 1.0)
    if envelope.kind == "linear":
        return done
    if envelope.kind == "cosine":
        return (1.0 - math.cos(math.pi * done)) / 2.0
    if envelope.kind == "anneal":
        return (1.0 + math.cos(math.pi * done)) / 2.0
    return 1.0


def value_learns_at(scale: Scale, t: float) -> bool:
    """Whether λ's value is being learned at progress `t`.

    Where it is not, an optimiser must leave it alone (a rate of 0): a gradient of 0 alone would
    not stop Adam, whose momentum goes on.
    """
    held = scale.envelope.kind == "hold" and t >= scale.envelope.until
    return scale.learned and not held


class EnvelopeFactor(nn.Module):
    """The envelope as it stands: one tensor, so that a compiled model sees it change.

    The buffer `factor` (1,) is not part of a state dict: it follows from the progress of training.
    """

    factor: Tensor

    def __init__(self, envelope: Envelope, like: Tensor) -> None:
        super().__init__()
        self.envelope = envelope
        self.register_buffer("factor", like.new_empty(1), persistent=False)
        self.set_progress(0.0)

    @torch.no_grad()
    def set_progress(self, t: float) -> None:
        """Set the factor to the envelope at progress `t` in [0, 1]."""
        self.factor.fill_(envelope_at(self.envelope, t))


class ScaleValue(nn.Module):
    """λ of one auxiliary and one group of linears; the group's linears share this module.

    The parameter `value` (n,) is never 0-d: FSDP2 refuses scalars, and decay rules misfile them.
    """

    def __init__(self, scale: Scale, size: int, envelope: EnvelopeFactor) -> None:
        super().__init__()
        start = torch.full_like(envelope.factor.expand(size), scale.init)
        self.value = nn.Parameter(start, requires_grad=scale.learned)
        self.envelope = envelope

    def forward(self) -> Tensor:
        """λ = envelope · value, (n,)."""
        return self.envelope.factor * self.value


def scale_group(scale: Scale, block: int, linear: LinearName) -> tuple[tuple[object, ...], int]:
    """The group of linears whose λ a linear shares, as a key, and the size n of that λ."""
    places = {"linear": (block, linear), "block": (block,), "global": ()}
    apart = scale.split_qkv and linear == "qkv"
    return (*places[scale.granularity], apart), 3 if apart else 1


def add_scaled(weight: Tensor, auxiliary: Tensor, scale: Tensor) -> Tensor:
    """W + λW' [M2PT, eq. 8], differentiable in all three.

    Args:
        weight: W (out, in).
        auxiliary: W' (out, in), of W's dtype and on its device.
        scale: λ (n,): one number, or n numbers that scale n equal bands of rows.

    Returns:
        (out, in); where λ is 0, exactly W, the sign of its zeros included.
    """
    summed: Tensor = _AddScaled.apply(weight, auxiliary, scale)
    return summed


class _AddScaled(torch.autograd.Function):
    """Of its own, because λ = 0 must give W bit for bit (-0.0 + 0.0 would be 0.0) and still have a
    gradient. On a ViT-S it costs what plain operations do, within what could be measured (4 %
    of a step on eight images), the check for 0 included. The context is filled in `forward`: with
    `setup_context`, each call takes twice as long, which tells in small models.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, auxiliary: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(auxiliary, scale)
        rows = _by_row(scale, len(weight))
        return torch.where(rows == 0, weight, torch.addcmul(weight, auxiliary, rows))

    @staticmethod
    def backward(
        ctx: Any,  # torch declares its `saved_tensors` as a tuple of one
        grad: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        auxiliary, scale = ctx.saved_tensors
        grad_auxiliary = grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_auxiliary = grad * _by_row(scale, len(grad))
        if ctx.needs_input_grad[2]:
            products_NRI = (grad * auxiliary).view(len(scale), -1, grad.shape[1])
            grad_scale = products_NRI.sum(dim=(1, 2))
        return grad, grad_auxiliary, grad_scale


def _by_row(scale: Tensor, rows: int) -> Tensor:
    """λ (n,) as something that broadcasts over (rows, in)."""
    if len(scale) == 1:
        return scale
    return scale.repeat_interleave(rows // len(scale)).unsqueeze(1)

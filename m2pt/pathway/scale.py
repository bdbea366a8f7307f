"""λ: its envelope over training, its value, and the addition that it scales.

Shapes: n is 1, or 3 where q, k and v are scaled apart; a weight is (out, in).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from m2pt.pathway.config import Envelope, Scale


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

    def __init__(self, scale: Scale, start: Tensor, envelope: EnvelopeFactor) -> None:
        """`start` (n,) is where the value begins; with a clamp, inside of it."""
        super().__init__()
        self.clamp = scale.clamp
        self.value = nn.Parameter(start.clone(), requires_grad=scale.learned)
        self.envelope = envelope
        self.put_back()

    def forward(self) -> Tensor:
        """λ = envelope · value, (n,)."""
        return self.envelope.factor * self.value

    @torch.no_grad()
    def put_back(self) -> None:
        """Bring the value back to within ±clamp, where there is one."""
        if self.clamp is not None:
            self.value.clamp_(-self.clamp, self.clamp)


def add_scaled(weight: Tensor, auxiliary: Tensor, scale: Tensor) -> Tensor:
    """W + λW' [M2PT, eq. 8], differentiable in all three; biases are added alike.

    Args:
        weight: W (out, in), or a bias (out,).
        auxiliary: W', of W's shape and on its device; of W's dtype, or narrower where it has no
            gradient.
        scale: λ (n,): one number, or n numbers that scale n equal bands of rows.

    Returns:
        As `weight`; where λ is 0, exactly W, the sign of its zeros included.
    """
    summed: Tensor = _AddScaled.apply(weight, auxiliary, scale)
    return summed


class _AddScaled(torch.autograd.Function):
    """Of its own, because λ = 0 must give W bit for bit (-0.0 + 0.0 would be 0.0) and still have a
    gradient, and because λ's gradient then needs no product of the size of a weight. The context is
    filled in `forward`: with `setup_context`, each call takes twice as long, which tells in small
    models.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, auxiliary: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(auxiliary, scale)
        rows = _by_row(scale, weight)
        summed = torch.addcmul(weight, auxiliary, rows)
        return summed if _seen_nonzero(scale) else torch.where(rows == 0, weight, summed)

    @staticmethod
    def backward(
        ctx: Any,  # torch declares its `saved_tensors` as a tuple of one
        grad: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        auxiliary, scale = ctx.saved_tensors
        grad_auxiliary = grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_auxiliary = grad * _by_row(scale, grad)
        if ctx.needs_input_grad[2]:
            bands = zip(_bands(grad, scale), _bands(auxiliary.to(grad), scale), strict=True)
            grad_scale = torch.stack([torch.dot(*pair) for pair in bands])
        return grad, grad_auxiliary, grad_scale


def _seen_nonzero(scale: Tensor) -> bool:
    """Whether λ can be looked at for nothing, and is nowhere 0.

    A look at an accelerator's memory would make the host wait for it, and a compiler has no value
    to look at. What the look spares is a second pass over every weight: half of the addition.
    """
    plain = type(scale) is Tensor and scale.device.type == "cpu"
    return plain and not torch.compiler.is_compiling() and bool(scale.all())


def _bands(weight: Tensor, scale: Tensor) -> Tensor:
    """The rows that each of the n λ scales, as (n, rows / n * in)."""
    return weight.reshape(len(scale), -1)


def _by_row(scale: Tensor, like: Tensor) -> Tensor:
    """λ (n,) as something that broadcasts over `like`, (rows, in) or (rows,)."""
    if len(scale) == 1:
        return scale
    by_row = scale.repeat_interleave(len(like) // len(scale))
    return by_row if like.ndim == 1 else by_row.unsqueeze(1)

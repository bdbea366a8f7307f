"""Attaching a pathway to a target, in place; asking about it; fusing it away.

A covered linear stays the module it was. Its weight becomes computed, W + Σ λW' over the
auxiliaries [M2PT, eq. 8], by one parametrization, so that code that reads `.weight` directly, as
video backbones do, sees it as well. Biases are joined alike where the pathway says so.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2pt.pathway.auxiliary import Auxiliary
from m2pt.pathway.config import Pathway
from m2pt.pathway.prepare import prepare
from m2pt.pathway.scale import EnvelopeFactor, ScaleValue
from m2pt.pathway.weight import Joined, joined

PAPER = Pathway()
T = TypeVar("T")

ScaleKey = tuple[str, str]
"""An auxiliary's name and a linear's path, such as ("audio", "blocks.3.mlp.fc1")."""


def attach_pathway(
    target: nn.Module, auxiliaries: Mapping[str, Auxiliary], pathway: Pathway = PAPER
) -> nn.Module:
    """Attach auxiliaries to the covered linears of a target, in place.

    The target starts at progress t = 0 (see `set_progress`). Auxiliary weights are copied, to the
    target's dtype and device; the auxiliaries themselves are neither changed nor kept. Parameters
    of the target stay the same objects, so an optimiser made before goes on working.

    Args:
        target: a transformer with `blocks`, each with `attn.qkv`, `attn.proj`, `mlp.fc1` and
            `mlp.fc2` as far as covered, with or without biases.
        auxiliaries: for each name, a module like the target or a mapping of block weights with
            keys such as "blocks.0.attn.qkv.weight"; further keys are ignored.
        pathway: the default is the paper's setting.

    Returns:
        The target itself.

    Raises:
        ValueError: depths or shapes differ, something is missing or not finite, or the target
            has a pathway already. The target is then as it was.
    """
    if has_pathway(target):
        raise ValueError(
            "the target has a pathway already: give all auxiliaries in one call of "
            "attach_pathway, or fuse the first pathway before attaching another"
        )
    prepared = prepare(target, auxiliaries, pathway)  # all of it, before the first change
    for linear, name, part in prepared:
        parametrize.register_parametrization(linear, name, part, unsafe=True)
    return target


def fuse_pathway(model: nn.Module) -> nn.Module:
    """Fold λW' into W with λ as it is now, in place, and leave the plain target.

    Computed in float32 (in float64 where the weights are), then rounded to the weights' dtype.
    The state dict has the plain target's keys in their order. A model without a pathway is
    returned as it is; of a sharded one, a plain copy is fused (`whole.gathered`). For the λ at the
    end of training, `set_progress(model, 1.0)` comes first.

    Raises:
        ValueError: the weights are sharded, or parametrized by something else as well.
    """
    found = list(joined(model))
    for one in found:
        _refuse_unfusable(one)
    for one in found:
        fused, linear = one.part.fused(one.own), one.linear
        # A deepcopy shares its class with the model that it was copied from, and removing takes
        # the property `weight` from the class: so this linear first gets a class of its own.
        shared = type(linear)
        linear.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(linear, one.name, leave_parametrized=False)
        with torch.no_grad():
            one.own.copy_(fused)
        for name in one.part.order:  # removing put it behind the others
            if name in linear._parameters:
                linear._parameters[name] = linear._parameters.pop(name)
    return model


@torch.no_grad()
def merge_and_reset(model: nn.Module) -> None:
    """Fold λW' into W as `fuse_pathway` does, but keep the pathway, with λ's value at 0.

    The function of the model stays what it is, but for rounding. Moments that an optimiser has of
    λ are of what is over: drop them.
    """
    found = list(joined(model))
    for one in found:
        one.own.copy_(one.part.fused(one.own))
    for value in scales(model).values():
        value.zero_()


def clamp_scales(model: nn.Module) -> None:
    """Bring every λ value back to within its clamp: after each step of an optimiser."""
    for module in model.modules():
        if isinstance(module, ScaleValue):
            module.put_back()


@contextmanager
def computed_once(model: nn.Module) -> Iterator[None]:
    """Inside, every W + Σ λW' is computed once, however many forwards and backwards there are.

    The gradients of what lies under it (W, W', λ) arrive at the end, in one backward. Not with
    DistributedDataParallel, which waits for them earlier, and not around a compiled model.
    """
    parts = list(joined(model))
    built = [one.part.hold(one.own) for one in parts]
    try:
        yield
    finally:
        grads = [one.part.let_go() for one in parts]
    pairs = [(tensor, grad) for tensor, grad in zip(built, grads, strict=True) if grad is not None]
    if pairs:
        torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])


def has_pathway(model: nn.Module) -> bool:
    """Whether a pathway is attached to the model or to a part of it."""
    return next(joined(model), None) is not None


def scales(model: nn.Module) -> dict[ScaleKey, nn.Parameter]:
    """λ's value by auxiliary and linear: (1,), or (3,) for q, k and v apart.

    Linears of one group (granularity "block" or "global") have the same Parameter object.
    """
    return _by_scale(model, lambda scale: scale.value)


@torch.no_grad()
def effective_scales(model: nn.Module) -> dict[ScaleKey, Tensor]:
    """λ = envelope · value as it is now, by auxiliary and linear; shapes as in `scales`."""
    return _by_scale(model, lambda scale: scale())


def set_progress(model: nn.Module, t: float) -> None:
    """Set the envelope of every λ to progress `t` in [0, 1]; a plain model is left alone.

    The envelope is no part of a state dict: set it again after loading one. Whether a value is
    still learned (an envelope of kind "hold") is for the optimiser: see `value_learns_at`.

    Raises:
        ValueError: `t` is outside [0, 1].
    """
    for module in model.modules():
        if isinstance(module, EnvelopeFactor):
            module.set_progress(t)


def auxiliary_names(model: nn.Module) -> set[str]:
    """Names, as in `named_parameters`, of all auxiliary weights, biases and low-rank changes."""
    weights = [p for one in joined(model) for n in one.part.names for p in one.part.borrowed(n)]
    return _names_of(model, weights)


def frozen_auxiliary_names(model: nn.Module) -> set[str]:
    """Names, as in `named_parameters`, of the auxiliary weights that are not trained.

    Optimiser, checkpoint and averaged copies leave them out.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return auxiliary_names(model) & frozen


def scale_names(model: nn.Module) -> set[str]:
    """Names, as in `named_parameters`, of all λ values; one each where linears share it."""
    return _names_of(model, scales(model).values())


def _refuse_unfusable(one: Joined) -> None:
    layer = one.part.layer
    if hasattr(one.own, "full_tensor"):
        raise ValueError(
            f"fuse: {layer} is sharded, and stays so in place; gather first, on all ranks "
            "alike: fuse_pathway(gathered(model))"
        )
    if len(list(one.linear.get_submodule(f"parametrizations.{one.name}").children())) > 1:
        raise ValueError(
            f"fuse: {layer} is parametrized by something else as well; remove that first"
        )


def _by_scale(model: nn.Module, read: Callable[[ScaleValue], T]) -> dict[ScaleKey, T]:
    return {
        (name, one.part.layer): read(one.part.scale(name))
        for one in joined(model)
        if one.name == "weight"
        for name in one.part.names
    }


def _names_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, found in model.named_parameters() if id(found) in wanted}

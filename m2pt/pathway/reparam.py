"""Attaching a pathway to a target, in place; asking about it; fusing it away.

A covered linear stays the module it was. Its weight becomes computed, W + Σ λW' over the
auxiliaries [M2PT, eq. 8], by one parametrization, so that code that reads `.weight` directly, as
video backbones do, sees it as well. The auxiliary's bias is not used.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2pt.pathway.auxiliary import Auxiliary
from m2pt.pathway.config import Pathway
from m2pt.pathway.prepare import prepare
from m2pt.pathway.scale import EnvelopeFactor, ScaleValue
from m2pt.pathway.weight import PathwayWeight, pathway_linears

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
    for linear, part in prepared:
        parametrize.register_parametrization(linear, "weight", part, unsafe=True)
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
    found = list(pathway_linears(model))
    for linear, weight, part in found:
        _refuse_unfusable(linear, weight, part)
    for linear, weight, part in found:
        fused = part.fused(weight)
        # A deepcopy shares its class with the model that it was copied from, and removing takes
        # the property `weight` from the class: so this linear first gets a class of its own.
        shared = type(linear)
        linear.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
        with torch.no_grad():
            weight.copy_(fused)
        for name in part.order:  # removing put `weight` behind `bias`
            linear._parameters[name] = linear._parameters.pop(name)
    return model


def has_pathway(model: nn.Module) -> bool:
    """Whether a pathway is attached to the model or to a part of it."""
    return next(pathway_linears(model), None) is not None


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
    """Names, as in `named_parameters`, of all auxiliary weights."""
    weights = [p.auxiliary(name) for _, _, p in pathway_linears(model) for name in p.names]
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


def _refuse_unfusable(linear: nn.Module, weight: Tensor, part: PathwayWeight) -> None:
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            f"fuse: {part.layer} is sharded, and stays so in place; gather first, on all ranks "
            "alike: fuse_pathway(gathered(model))"
        )
    if len(list(linear.get_submodule("parametrizations.weight").children())) > 1:
        raise ValueError(
            f"fuse: {part.layer} is parametrized by something else as well; remove that first"
        )


def _by_scale(model: nn.Module, read: Callable[[ScaleValue], T]) -> dict[ScaleKey, T]:
    return {
        (name, part.layer): read(part.scale(name))
        for _, _, part in pathway_linears(model)
        for name in part.names
    }


def _names_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, found in model.named_parameters() if id(found) in wanted}

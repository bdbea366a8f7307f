"""From a target, auxiliaries and a pathway to what is attached to each linear, or a refusal."""

from collections.abc import Mapping

from torch import nn
from torch.nn.utils import parametrize

from m2pt.pathway.auxiliary import (
    Auxiliary,
    blocks_of,
    depth_of,
    fitting_copy,
    linear_of,
    weight_of,
)
from m2pt.pathway.config import LinearName, Pathway
from m2pt.pathway.coverage import layer_name, mapping, scale_group, select
from m2pt.pathway.scale import EnvelopeFactor, ScaleValue
from m2pt.pathway.weight import PathwayWeight


def prepare(
    target: nn.Module, auxiliaries: Mapping[str, Auxiliary], pathway: Pathway
) -> list[tuple[nn.Module, PathwayWeight]]:
    """What to attach to which linear of a target; changes nothing.

    Raises:
        ValueError: target, auxiliaries and pathway do not fit each other.
    """
    blocks = blocks_of(target, "target")
    _check_auxiliaries(auxiliaries, len(blocks))
    partners = mapping(pathway.mapping, len(blocks))
    covered = [
        (block, linear, *_target_linear(blocks[block], linear, layer_name(block, linear)))
        for block, linear in select(pathway.coverage, len(blocks))
    ]
    if len({id(module) for _, _, module, _ in covered}) < len(covered):
        raise ValueError("target: blocks share their linears; a pathway needs blocks of their own")
    envelope = EnvelopeFactor(pathway.scale.envelope, like=covered[0][3])
    shared: dict[object, ScaleValue] = {}
    prepared = []
    for block, linear, module, weight in covered:
        layer, partner = layer_name(block, linear), layer_name(partners[block], linear)
        group, size = scale_group(pathway.scale, block, linear)
        if weight.shape[0] % size:
            raise ValueError(
                f"split_qkv: the {weight.shape[0]} rows of the target's {layer} are not q, k and v "
                "of one size; scale them together"
            )
        part = PathwayWeight(layer, order=tuple(module._parameters))
        for name, auxiliary in auxiliaries.items():
            here = f"auxiliary {name!r}: {partner}.weight for the target's {layer}"
            copy = fitting_copy(weight_of(auxiliary, partners[block], linear), weight, here)
            if (name, group) not in shared:
                shared[name, group] = ScaleValue(pathway.scale, size, envelope)
            frozen_or_not = nn.Parameter(copy, requires_grad=pathway.trainable)
            part.add(name, frozen_or_not, shared[name, group])
        prepared.append((module, part))
    return prepared


def _check_auxiliaries(auxiliaries: Mapping[str, Auxiliary], depth: int) -> None:
    if not auxiliaries:
        raise ValueError("auxiliaries: at least one is needed; a baseline has no pathway at all")
    for name, auxiliary in auxiliaries.items():
        if not name or "." in name:
            raise ValueError(f"auxiliaries: a name without dots, not {name!r}: it names parameters")
        found = depth_of(auxiliary, f"auxiliary {name!r}")
        if found != depth:
            raise ValueError(
                f"auxiliary {name!r}: it has {found} blocks and the target {depth}; "
                "both must have the same depth, none of them is left out silently"
            )


def _target_linear(
    block: nn.Module, linear: LinearName, layer: str
) -> tuple[nn.Module, nn.Parameter]:
    module = linear_of(block, linear)
    if module is not None and parametrize.is_parametrized(module):
        raise ValueError(f"target: {layer} is parametrized already; remove that first")
    weight = module._parameters.get("weight") if module is not None else None
    if module is None or weight is None or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"target: there is no linear {layer} with a weight (out, in) of floating point; "
            "leave it out of the coverage"
        )
    return module, weight

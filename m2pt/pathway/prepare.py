"""From a target, auxiliaries and a pathway to what is attached to each linear, or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2pt.pathway.auxiliary import (
    Auxiliary,
    blocks_of,
    depth_of,
    fitting_copy,
    linear_of,
    tensor_of,
)
from m2pt.pathway.config import LinearName, Pathway, Scale
from m2pt.pathway.coverage import (
    layer_name,
    mapping,
    scale_group,
    scale_places,
    select,
    spread,
)
from m2pt.pathway.low_rank import change_of, truncated
from m2pt.pathway.scale import EnvelopeFactor, ScaleValue
from m2pt.pathway.weight import Borrowed, PathwayWeight

_LEAST_NORM = 1e-30  # of an auxiliary that is 0 throughout

Tensors = dict[str, Tensor]
"""`weight` and, where biases are joined, `bias` of one linear of an auxiliary, made to fit."""


@dataclass(frozen=True)
class _Covered:
    """A linear that takes part.

    Attributes:
        size: how many numbers its λ is.
        places: for each third of its rows the number that scales it, or None; None where there is
            one band for each number.
    """

    block: int
    linear: LinearName
    module: nn.Module
    weight: nn.Parameter
    size: int
    places: tuple[int | None, ...] | None

    @property
    def layer(self) -> str:
        return layer_name(self.block, self.linear)

    def by_number(self, weight: Tensor) -> list[Tensor]:
        """The rows of a weight that each number of λ scales."""
        if self.places is None:
            return list(weight.chunk(self.size))
        thirds = list(zip(self.places, weight.chunk(3), strict=True))
        return [
            torch.cat([rows for place, rows in thirds if place == number])
            for number in range(self.size)
        ]


def prepare(
    target: nn.Module, auxiliaries: Mapping[str, Auxiliary], pathway: Pathway
) -> list[tuple[nn.Module, str, PathwayWeight]]:
    """What to attach to which tensor of which linear of a target; changes nothing.

    Raises:
        ValueError: target, auxiliaries and pathway do not fit each other.
    """
    covered = _covered(target, pathway)
    depth = len(blocks_of(target, "target"))
    partners = _partners(auxiliaries, pathway, depth)
    tensors = {
        name: [
            _tensors((name, auxiliary), one, partners[name][one.block], pathway) for one in covered
        ]
        for name, auxiliary in auxiliaries.items()
    }
    envelope = EnvelopeFactor(pathway.scale.envelope, like=covered[0].weight)
    values = {
        name: _scale_values(list(zip(covered, found, strict=True)), pathway.scale, depth, envelope)
        for name, found in tensors.items()
    }
    prepared = []
    for at, one in enumerate(covered):
        for kind in next(iter(tensors.values()))[at]:
            part = PathwayWeight(one.layer, tuple(one.module._parameters), one.places)
            for name, found in tensors.items():
                part.add(name, _borrowed(found[at][kind], values[name][at], pathway, one.layer))
            prepared.append((one.module, kind, part))
    return prepared


def _covered(target: nn.Module, pathway: Pathway) -> list[_Covered]:
    blocks = blocks_of(target, "target")
    found = []
    for block, linear in select(pathway.coverage, len(blocks)):
        layer = layer_name(block, linear)
        module, weight = _target_linear(blocks[block], linear, layer)
        size, places = scale_places(pathway.coverage, pathway.scale, linear)
        if (size > 1 or places) and weight.shape[0] % 3:
            raise ValueError(
                f"split_qkv: the {weight.shape[0]} rows of the target's {layer} are not q, k and v "
                "of one size; scale them together"
            )
        found.append(_Covered(block, linear, module, weight, size, places))
    if len({id(one.module) for one in found}) < len(found):
        raise ValueError("target: blocks share their linears; a pathway needs blocks of their own")
    return found


def _partners(
    auxiliaries: Mapping[str, Auxiliary], pathway: Pathway, depth: int
) -> dict[str, tuple[int, ...]]:
    """By auxiliary, which of its blocks meets which of the target's."""
    if not auxiliaries:
        raise ValueError("auxiliaries: at least one is needed; a baseline has no pathway at all")
    found = {}
    for name, auxiliary in auxiliaries.items():
        if not name or "." in name:
            raise ValueError(f"auxiliaries: a name without dots, not {name!r}: it names parameters")
        theirs = depth_of(auxiliary, f"auxiliary {name!r}")
        try:
            found[name] = mapping(pathway.mapping, depth, theirs)
        except ValueError as error:
            raise ValueError(f"auxiliary {name!r}: {error}") from error
    return found


def _tensors(
    named: tuple[str, Auxiliary], one: _Covered, partner: int, pathway: Pathway
) -> Tensors:
    """What an auxiliary block lends to a linear, prepared."""
    name, auxiliary = named
    source = f"auxiliary {name!r}: {layer_name(partner, one.linear)}"
    where = f"{source}.weight for the target's {one.layer}"
    weight = fitting_copy(tensor_of(auxiliary, partner, one.linear), one.weight, where)
    found = {"weight": weight}
    bias = one.module._parameters.get("bias")
    if pathway.bias == "added" and bias is not None:
        here = f"{source}.bias for the target's {one.layer} (pathway.bias: added)"
        found["bias"] = fitting_copy(tensor_of(auxiliary, partner, one.linear, "bias"), bias, here)
    if pathway.prepared_rank is not None:
        found["weight"] = truncated(weight, pathway.prepared_rank, source)
    if pathway.prepare == "frobenius":
        factor = _norm([one.weight]) / _norm([weight]).clamp(min=_LEAST_NORM)
        found = {kind: (tensor.double() * factor).to(tensor) for kind, tensor in found.items()}
    return found


def _scale_values(
    pairs: Sequence[tuple[_Covered, Tensors]], scale: Scale, depth: int, envelope: EnvelopeFactor
) -> list[ScaleValue]:
    """λ of each covered linear for one auxiliary; linears of a group have the same."""
    keys = [scale_group(scale, one.block, one.linear) for one, _ in pairs]
    values = {}
    for key in dict.fromkeys(keys):
        members = [pair for pair, found in zip(pairs, keys, strict=True) if found == key]
        first = members[0][0]
        start = torch.full((first.size,), spread(scale.init, first.block, depth)).double()
        if scale.relative:
            start = start * _ratios(members)
        values[key] = ScaleValue(scale, start.to(envelope.factor), envelope)
    return [values[key] for key in keys]


def _ratios(members: Sequence[tuple[_Covered, Tensors]]) -> Tensor:
    """‖W‖ / ‖W'‖ of a group, for each number (n,) of its λ."""
    ours = zip(*(one.by_number(one.weight) for one, _ in members), strict=True)
    theirs = zip(*(one.by_number(tensors["weight"]) for one, tensors in members), strict=True)
    ratios = [
        _norm(rows) / _norm(borrowed).clamp(min=_LEAST_NORM)
        for rows, borrowed in zip(ours, theirs, strict=True)
    ]
    return torch.stack(ratios).cpu()


def _borrowed(tensor: Tensor, value: ScaleValue, pathway: Pathway, layer: str) -> Borrowed:
    training = pathway.training
    change = None
    if training.kind == "low_rank" and tensor.ndim == 2:
        change = change_of(tensor, training.rank, layer)
    if pathway.keep == "bf16":
        tensor = tensor.to(torch.bfloat16)
    trained = nn.Parameter(tensor, requires_grad=training.kind == "trained")
    return Borrowed(trained, value, change)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Frobenius norm of several tensors together, in float64."""
    norm: Tensor = torch.stack([tensor.detach().double().norm() for tensor in tensors]).norm()
    return norm


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

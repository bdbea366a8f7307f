"""Plain weight averaging: a target that starts from (1 - share) W + share W'."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from m2pt.pathway.auxiliary import (
    Auxiliary,
    blocks_of,
    depth_of,
    fitting_copy,
    linear_of,
    tensor_of,
)
from m2pt.pathway.config import LinearName
from m2pt.pathway.coverage import bands, layer_name, mapping, select
from m2pt.rivals.config import Rival


@torch.no_grad()
def average(target: nn.Module, auxiliaries: Mapping[str, Auxiliary], rival: Rival) -> None:
    """Average the covered weights in place; of several auxiliaries W' is the mean.

    Biases and norms stay the target's, as in a pathway. Where only some of q, k and v are covered,
    only their rows are averaged.

    Raises:
        ValueError: coverage, mapping or auxiliaries do not fit; the target is then as it was.
    """
    depth = len(blocks_of(target, "target"))
    partners = {
        name: _partners(name, auxiliary, rival, depth) for name, auxiliary in auxiliaries.items()
    }
    starts = []
    for block, linear in select(rival.coverage, depth):
        weight = _weight(target, block, linear)
        found = [
            _borrowed((name, auxiliary), partners[name][block], linear, weight)
            for name, auxiliary in auxiliaries.items()
        ]
        start = torch.lerp(weight, torch.stack(found).mean(dim=0), rival.share)
        thirds = bands(rival.coverage, linear)
        if thirds is not None:
            kept = zip(weight.chunk(3), start.chunk(3), strict=True)
            start = torch.cat(
                [new if third in thirds else old for third, (old, new) in enumerate(kept)]
            )
        starts.append((weight, start))
    for weight, start in starts:
        weight.copy_(start)


def _partners(name: str, auxiliary: Auxiliary, rival: Rival, depth: int) -> tuple[int, ...]:
    try:
        return mapping(rival.mapping, depth, depth_of(auxiliary, f"auxiliary {name!r}"))
    except ValueError as error:
        raise ValueError(f"auxiliary {name!r}: rival.{error}") from error


def _weight(target: nn.Module, block: int, linear: LinearName) -> Tensor:
    module = linear_of(blocks_of(target, "target")[block], linear)
    weight = None if module is None else module._parameters.get("weight")
    if weight is None:
        raise ValueError(f"target: there is no linear {layer_name(block, linear)}")
    return weight


def _borrowed(
    named: tuple[str, Auxiliary], partner: int, linear: LinearName, weight: Tensor
) -> Tensor:
    name, auxiliary = named
    where = f"auxiliary {name!r}: {layer_name(partner, linear)}.weight for the target's {linear}"
    return fitting_copy(tensor_of(auxiliary, partner, linear), weight, where)

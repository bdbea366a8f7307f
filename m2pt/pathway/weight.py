"""The parametrization of one tensor of a linear: what the auxiliaries add to it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2pt.pathway.scale import ScaleValue, add_scaled

TENSORS = ("weight", "bias")


@dataclass(frozen=True)
class Borrowed:
    """What one auxiliary adds to one tensor.

    Attributes:
        auxiliary: W' (out, in), or b' (out,).
        scale: λ.
        change: two matrices (out, r) and (r, in) whose product is learned beside a frozen W'.
    """

    auxiliary: nn.Parameter
    scale: ScaleValue
    change: tuple[nn.Parameter, nn.Parameter] | None = None


class PathwayWeight(nn.Module):
    """The parametrization of one weight or bias: what each auxiliary adds to it, by name.

    Attributes:
        layer: the linear's path in the target, such as "blocks.3.mlp.fc1".
        names: the auxiliaries' names, in the order in which they are added.
        order: the linear's own parameters in their order before attaching.
    """

    places: Tensor | None

    def __init__(
        self, layer: str, order: tuple[str, ...], places: tuple[int | None, ...] | None = None
    ) -> None:
        """`places`: for each band of rows the index of its λ, or None where it is not covered."""
        super().__init__()
        self.layer = layer
        self.order = order
        self.names: tuple[str, ...] = ()
        index = None
        if places is not None:
            index = torch.tensor([0 if place is None else place + 1 for place in places])
        self.register_buffer("places", index, persistent=False)
        self._held: Tensor | None = None

    def add(self, name: str, borrowed: Borrowed) -> None:
        """Add one auxiliary."""
        # Prefixes keep an auxiliary called "type" or "train" from hiding an attribute of Module.
        self.register_parameter(f"auxiliary_{name}", borrowed.auxiliary)
        if borrowed.change is not None:
            self.register_parameter(f"rows_{name}", borrowed.change[0])
            self.register_parameter(f"columns_{name}", borrowed.change[1])
        self.add_module(f"scale_{name}", borrowed.scale)
        self.names = (*self.names, name)

    def borrowed(self, name: str) -> list[nn.Parameter]:
        """W' of one auxiliary, and the two matrices of its low-rank change where it has one."""
        found = (getattr(self, f"{kind}_{name}", None) for kind in ("auxiliary", "rows", "columns"))
        return [parameter for parameter in found if parameter is not None]

    def scale(self, name: str) -> ScaleValue:
        """λ of one auxiliary, shared by the linears of its group."""
        scale = self.get_submodule(f"scale_{name}")
        assert isinstance(scale, ScaleValue)
        return scale

    def forward(self, weight: Tensor) -> Tensor:
        """W + Σ λW', of W's shape."""
        if self._held is not None:
            return self._held
        for name in self.names:
            strength = self._by_band(getattr(self, f"scale_{name}")())
            weight = add_scaled(weight, self._changed(name), strength)
        return weight

    @torch.no_grad()
    def fused(self, weight: Tensor) -> Tensor:
        """W + Σ λW', computed in float32 at least."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        total = weight.to(dtype)
        for name in self.names:
            scale = self.scale(name)
            strength = scale.envelope.factor.to(dtype) * scale.value.to(dtype)
            total = add_scaled(total, self._changed(name).to(dtype), self._by_band(strength))
        return total

    def hold(self, weight: Tensor) -> Tensor:
        """Compute W + Σ λW' now and answer with it until `let_go`; returns it with its graph."""
        built = self.forward(weight)
        self._held = built.detach().requires_grad_(built.requires_grad)
        return built

    def let_go(self) -> Tensor | None:
        """End what `hold` began; the gradient that was gathered meanwhile."""
        held, self._held = self._held, None
        return None if held is None else held.grad

    def _changed(self, name: str) -> Tensor:
        """W', with its low-rank change."""
        auxiliary: Tensor = getattr(self, f"auxiliary_{name}")
        rows = getattr(self, f"rows_{name}", None)
        if rows is None:
            return auxiliary
        return torch.addmm(auxiliary.to(rows.dtype), rows, getattr(self, f"columns_{name}"))

    def _by_band(self, scale: Tensor) -> Tensor:
        """λ for each band of rows: 0 where a band is not covered."""
        if self.places is None:
            return scale
        return torch.cat([scale.new_zeros(1), scale])[self.places]


@dataclass(frozen=True)
class Joined:
    """One tensor of a target that has a pathway.

    Attributes:
        linear: its module.
        name: "weight" or "bias".
        own: W or b itself.
        part: what is added to it.
    """

    linear: nn.Module
    name: str
    own: nn.Parameter
    part: PathwayWeight


def joined(model: nn.Module) -> Iterator[Joined]:
    """Every tensor with a pathway, in the order of the model."""
    for module in model.modules():
        for name in TENSORS:
            if parametrize.is_parametrized(module, name):
                tensor = module.get_submodule(f"parametrizations.{name}")
                for part in tensor.children():
                    if isinstance(part, PathwayWeight):
                        yield Joined(module, name, tensor.get_parameter("original"), part)

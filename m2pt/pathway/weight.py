"""The parametrization of one linear's weight: what its auxiliaries add to it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2pt.pathway.scale import ScaleValue, add_scaled


class PathwayWeight(nn.Module):
    """The parametrization of one linear's weight: what each auxiliary adds to it, by name.

    Attributes:
        layer: the linear's path in the target, such as "blocks.3.mlp.fc1".
        names: the auxiliaries' names, in the order in which they are added.
        order: the linear's own parameters in their order before attaching.
    """

    def __init__(self, layer: str, order: tuple[str, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.order = order
        self.names: tuple[str, ...] = ()

    def add(self, name: str, auxiliary: nn.Parameter, scale: ScaleValue) -> None:
        """Add one auxiliary weight (out, in) with its λ."""
        # Prefixes keep an auxiliary called "type" or "train" from hiding an attribute of Module.
        self.register_parameter(f"auxiliary_{name}", auxiliary)
        self.add_module(f"scale_{name}", scale)
        self.names = (*self.names, name)

    def auxiliary(self, name: str) -> nn.Parameter:
        """W' (out, in) of one auxiliary."""
        return self.get_parameter(f"auxiliary_{name}")

    def scale(self, name: str) -> ScaleValue:
        """λ of one auxiliary, shared by the linears of its group."""
        scale = self.get_submodule(f"scale_{name}")
        assert isinstance(scale, ScaleValue)
        return scale

    def forward(self, weight: Tensor) -> Tensor:
        """W + Σ λW', (out, in)."""
        for name in self.names:
            scale: Tensor = getattr(self, f"scale_{name}")()
            weight = add_scaled(weight, getattr(self, f"auxiliary_{name}"), scale)
        return weight

    @torch.no_grad()
    def fused(self, weight: Tensor) -> Tensor:
        """W + Σ λW' (out, in), computed in float32 at least."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        total = weight.to(dtype)
        for name in self.names:
            scale = self.scale(name)
            strength = scale.envelope.factor.to(dtype) * scale.value.to(dtype)
            total = add_scaled(total, self.auxiliary(name).to(dtype), strength)
        return total


def pathway_linears(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor, PathwayWeight]]:
    """Every linear with a pathway: the module, its own weight W (out, in), and what is added."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = module.get_submodule("parametrizations.weight")
            for part in weight.children():
                if isinstance(part, PathwayWeight):
                    yield module, weight.get_parameter("original"), part

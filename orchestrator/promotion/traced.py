"""The plain model as one graph with a free batch: what runs where this project is not.

B: batch, N: points of a cloud.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from m2pt.data.config import DataInfo
from m2pt.data.samples import Samples
from orchestrator.promotion.gate import TOLERANCE, PromotionError

Run = Callable[[np.ndarray], np.ndarray]
"""Inputs (B, ...) to outputs (B, ...)."""

_BATCHES = (1, 2, 5)
"""On which what was written is compared: none of them, not even one sample, may be built in."""
_STEPS = 16
_NOTHING = "nothing was registered or written"


class PointsAndCategory(nn.Module):
    """A model that tells the parts of points, with one input instead of two.

    MLflow serves models of one tensor: so a cloud's category stands beside each of its points.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, points_BN4: Tensor) -> Tensor:
        """Logits (B, N, parts) of points (x, y, z, category)."""
        category_B = points_BN4[:, 0, 3].round().long()
        logits: Tensor = self.model(points_BN4[..., :3], category_B)
        return logits


@dataclass(frozen=True)
class Traced:
    """A model's graph, what goes in, and what has to come out.

    Attributes:
        program: the graph; its batch is free, all else is as it was traced.
        example: an input (2, ...) of drawn numbers, as short as text as numbers can be.
        samples, expected: real inputs, and the plain model's own outputs for them.
    """

    program: ExportedProgram
    example: np.ndarray
    samples: Tensor
    expected: Tensor

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of outputs, -1 where it is free."""
        return (-1, *self.expected.shape[1:])

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip has to install where it is to run."""
        return (f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}")

    @property
    def module(self) -> nn.Module:
        """The graph as a module. It names no class of ours, and no path of this machine."""
        module: nn.Module = self.program.module()
        forget_places(module)
        return module

    def save(self, path: Path) -> None:
        """Write the graph as pt2, weights included."""
        torch.export.save(self.program, path)

    def check(self, run: Run, what: str) -> float:
        """Largest difference of an output from the plain model's, over the largest output.

        Raises:
            PromotionError: `what` computes something else, or refuses a batch.
        """
        return max(self._apart(run, what, size) for size in _BATCHES)

    def _apart(self, run: Run, what: str, size: int) -> float:
        """The same on a batch of `size`."""
        inputs, expected = self.samples[:size], self.expected[:size]
        try:
            found = torch.from_numpy(np.array(run(inputs.numpy())))
        except Exception as error:  # of any library that runs it
            raise PromotionError(
                f"{what} refuses a batch of {size}: {in_short(error)}; {_NOTHING}"
            ) from error
        if found.shape != expected.shape:
            raise PromotionError(
                f"{what} gives {tuple(found.shape)} for a batch of {size} where the plain model "
                f"gives {tuple(expected.shape)}; {_NOTHING}"
            )
        apart = float((found - expected).abs().max() / self.expected.abs().max())
        if not apart <= TOLERANCE:  # a NaN is not
            raise PromotionError(
                f"{what}: on a batch of {size} its outputs differ from the plain model's by "
                f"{apart:.2e} of the largest (at most {TOLERANCE:.0e}); {_NOTHING}"
            )
        return apart


def trace(plain: nn.Module, info: DataInfo, samples: Samples) -> Traced:
    """The graph of a plain model on the CPU, in eval mode, in its own type.

    Raises:
        PromotionError: the model cannot be traced with a free batch.
    """
    dtype = next(plain.parameters()).dtype
    model = (PointsAndCategory(plain) if info.task == "parts" else plain).eval()
    drawn = torch.randn(2, *info.shape, generator=torch.Generator().manual_seed(0))
    example = _with_category((drawn * _STEPS).round() / _STEPS, torch.zeros(2), info).to(dtype)
    inputs, labels = samples.batch([n % len(samples) for n in range(max(_BATCHES))])
    inputs = _with_category(inputs, labels.flatten(1)[:, 0] if labels.ndim > 1 else labels, info)
    inputs = inputs.to(dtype)
    with torch.no_grad():
        expected = model(inputs)
        try:
            program = export(model, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
        except Exception as error:  # torch has many kinds, none of them of its own
            raise PromotionError(
                f"torch.export cannot trace the model with a free batch: {in_short(error)}; the "
                "safetensors file of `orchestrator export` can be used all the same"
            ) from error
    forget_places(program.graph_module)
    return Traced(program, example.numpy(), inputs, expected)


def in_short(error: Exception) -> str:
    """What an exporter says, which fills pages, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def forget_places(module: nn.Module) -> None:
    """Take the stack traces out of a graph: paths of this machine that are of nobody's concern."""
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)


def _with_category(inputs: Tensor, category_B: Tensor, info: DataInfo) -> Tensor:
    """Points (B, N, 3) with their cloud's category as (B, N, 4); other inputs as they are."""
    if info.task != "parts":
        return inputs
    category_BN1 = category_B[:, None, None].expand(-1, inputs.shape[1], 1)
    return torch.cat([inputs, category_BN1.to(inputs.dtype)], dim=2)


def served_by(module: nn.Module) -> Run:
    """What runs a module on arrays."""

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs: np.ndarray = module(torch.from_numpy(inputs)).numpy()
        return outputs

    return run

"""What becomes of each tensor of a model that starts from weights. Decisions: nothing is copied."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from m2pt.data.config import Modality
from m2pt.weights import kernels, positions
from m2pt.weights.positions import Grid, by
from m2pt.weights.started import How, Placed
from m2pt.weights.whole import WholeWeights

KERNEL, BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
POSITIONS, CLASS = "pos_embed", "cls_token"
PLACE = "patch_embed.position."  # the MLP of a group's centre
_PREFIXES = (CLASS, "dist_token")
_SCALED = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}
_HEAD = "a head is another task's"
_AFTER = "in the source they come after attention and MLP"
_FINAL = {"norm": "fc_norm", "fc_norm": "norm"}


@dataclass(frozen=True)
class Slots:
    """What there is to fill in a model: the shape of each tensor, and what its tokens are."""

    shapes: Mapping[str, Size]
    modality: Modality
    grid: Grid = ()
    fixed_positions: bool = False

    @staticmethod
    def of(model: nn.Module, modality: Modality) -> "Slots":
        """Of a timm `VisionTransformer` as `m2pt.models.build_model` makes them."""
        made: Any = model  # timm has no types
        grid = tuple(getattr(made.patch_embed, "grid_size", ()))
        table = made.pos_embed
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        fixed = isinstance(table, nn.Parameter) and not table.requires_grad
        return Slots(shapes, modality, grid, fixed)


class Move(NamedTuple):
    """One tensor of the model: what becomes of it, which tensors of the source that takes, and
    how its value is made of the model's own."""

    placed: Placed
    uses: tuple[str, ...] = ()
    make: Callable[[Tensor], Tensor] | None = None


class Deciding:
    """The decisions about one model and one source."""

    def __init__(self, slots: Slots, weights: WholeWeights) -> None:
        self._slots, self._weights, self._tensors = slots, weights, weights.tensors
        self._blocks_alone = weights.blocks_alone
        self._why_no_tokenizer = self._other_tokenizer()

    def move(self, name: str) -> Move:
        """What becomes of the model's tensor `name`."""
        if name.startswith("head."):
            return _left(name, _HEAD)
        if self._blocks_alone and name not in self._tensors:
            return _left(name, "the weights are those of blocks alone")
        if name.startswith("blocks."):
            return self._of_block(name)
        if name.startswith("patch_embed."):
            return self._of_tokenizer(name)
        if name == POSITIONS:
            return self._positions()
        module, _, kind = name.partition(".")
        source = name
        if module in _FINAL and name not in self._tensors:
            source = f"{_FINAL[module]}.{kind}"
        return self._as_it_is(name, source)

    def why_unused(self, name: str) -> str:
        """Of a tensor of the source that no move takes."""
        if name.startswith(("head", "fc.", "classifier")):
            return _HEAD
        if name == POSITIONS and self._slots.fixed_positions:
            return "the model's positions are fixed (model.positions)"
        if name.startswith(("patch_embed.", POSITIONS, "encoder.")):
            return self._why_no_tokenizer or "it does not fit"
        if name.startswith("blocks.") and ".norm" in name:
            return _AFTER
        if name.startswith("norm_pre."):
            return "the model does not normalise before its blocks"
        return "the model has no such thing"

    def _of_block(self, name: str) -> Move:
        linear, _, kind = name.split(".", 2)[2].rpartition(".")
        if self._weights.post_norm and linear.startswith("norm"):
            return _left(name, _AFTER)
        gamma = name.removesuffix(f"{linear}.{kind}") + _SCALED.get(linear, "")
        if name in self._tensors and gamma in self._tensors and gamma not in self._slots.shapes:
            make = partial(_folded, self._tensors[name], self._tensors[gamma])
            return Move(Placed(name, "folded", "LayerScale folded in"), (name, gamma), make)
        return self._as_it_is(name, name)

    def _of_tokenizer(self, name: str) -> Move:
        if name.startswith(PLACE):
            theirs = name.replace(PLACE, "pos_embed.")  # Point-MAE's
            found = [one for one in (name, theirs) if one in self._tensors]
            return self._as_it_is(name, found[0] if found else name)
        if self._why_no_tokenizer is not None:
            return _left(name, self._why_no_tokenizer)
        if name == KERNEL:
            return self._kernel()
        if name == BIAS and BIAS not in self._tensors:
            told = "zero, for the source has none"
            return Move(Placed(name, "loaded", told), (), torch.zeros_like)
        return self._as_it_is(name, name)

    def _kernel(self) -> Move:
        kernel, wanted = self._tensors[KERNEL], self._slots.shapes[KERNEL]
        if kernel.shape == wanted:
            return self._as_it_is(KERNEL, KERNEL)
        told = ", ".join(_changes(kernel.shape, wanted))
        placed = Placed(KERNEL, "resampled", told)
        return Move(placed, (KERNEL,), lambda own: kernels.fitted(kernel, own.shape))

    def _positions(self) -> Move:
        if self._slots.fixed_positions:
            return _left(POSITIONS, "they are fixed (model.positions)")
        if self._why_no_tokenizer is not None:
            return _left(POSITIONS, self._why_no_tokenizer)
        if POSITIONS not in self._tensors:
            return _left(POSITIONS, "the source has none; if it computes them, model.positions can")
        table, wanted = self._tensors[POSITIONS], self._slots.shapes[POSITIONS]
        if table.ndim != 3 or (table.shape[0], table.shape[2]) != (1, wanted[2]):
            return _left(POSITIONS, f"the source's is {_size(table.shape)}, not {_size(wanted)}")
        found = self._grid_of(table.shape[1])
        if found is None:
            return _left(POSITIONS, f"the grid of the source's {table.shape[1]} cannot be told")
        (prefix, old), grid = found, self._slots.grid
        how: How = "loaded" if old == grid else "resampled"
        told = "" if old == grid else f"{by(old)} -> {by(grid)}"
        bare = CLASS in self._tensors and not prefix  # a class token without a position
        make = _Positions(table, prefix, old, grid, bare)
        return Move(Placed(POSITIONS, how, told), (POSITIONS,), make)

    def _grid_of(self, count: int) -> tuple[int, Grid] | None:
        """How many prefix tokens the source's positions are of, and the grid of the rest."""
        here = self._slots.grid
        before = sum(name in self._tensors for name in _PREFIXES)
        registers = 0
        if "reg_token" in self._tensors:
            registers = self._tensors["reg_token"].numel() // self._slots.shapes[POSITIONS][2]
        prefixes = list(dict.fromkeys((before, 0, before + registers)))  # the usual ones first
        modality = self._came_from()
        if (known := self._weights.grid) is not None:
            left, axes = count - prod(known), 3 if modality == "video" else 2
            return (left, known) if left in prefixes and len(known) == axes else None
        like = here[1:] if modality != self._slots.modality else here
        return positions.prefix_and_grid(
            count, prefixes, like, modality=modality, patch=self._tensors[KERNEL].shape[-1]
        )

    def _as_it_is(self, name: str, source: str) -> Move:
        found = self._tensors.get(source)
        if found is None:
            return _left(name, "the source has none")
        wanted = self._slots.shapes[name]
        if found.shape != wanted:
            return _left(name, f"the source's is {_size(found.shape)}, not {_size(wanted)}")
        told = "" if source == name else f"the source's {source.rpartition('.')[0]}"
        return Move(Placed(name, "loaded", told), (source,), lambda own: found)

    def _came_from(self) -> str:
        """The modality of the source's samples: known, or as far as its tokenizer tells."""
        if self._weights.modality is not None:
            return self._weights.modality
        if KERNEL not in self._tensors:
            return "point"
        kernel = kernels.Kernel.of(self._tensors[KERNEL].shape)
        if kernel is None:
            return self._slots.modality
        if kernel.frames is not None:
            return "video"
        grey = self._slots.modality == "image" and self._slots.shapes[KERNEL][1] == 1
        return "image" if kernel.channels > 1 or grey else "audio"

    def _other_tokenizer(self) -> str | None:
        """Why the source's tokenizer is of no use; None where it is."""
        here = self._slots.modality
        if not any(name.startswith(("patch_embed.", "encoder.")) for name in self._tensors):
            return "the source has none"
        there = self._came_from()
        if there != here and (there, here) != ("image", "video"):
            return f"the source's is of another modality ({there}; here {here})"
        if here == "point":
            own = [name for name in self._slots.shapes if name.startswith("patch_embed.")]
            whole = [name for name in own if not name.startswith(PLACE)]
            alike = (_shape(self._tensors, name) == self._slots.shapes[name] for name in whole)
            return None if all(alike) else "the source's PointNet is another one"
        if KERNEL not in self._tensors:
            return "the source has none"
        found = self._tensors[KERNEL].shape
        try:
            kernels.check(kernels.Kernel.of(found), there)
            _changes(found, self._slots.shapes[KERNEL])
        except ValueError as error:
            return f"the source's kernel is {_size(found)}: {error}"
        return None


def _left(name: str, why: str) -> Move:
    return Move(Placed(name, "left", why))


def _folded(linear: Tensor, gamma: Tensor, _own: Tensor) -> Tensor:
    """diag(gamma) times the weight or bias of the linear before LayerScale."""
    return linear * (gamma if linear.ndim == 1 else gamma[:, None])


@dataclass(frozen=True)
class _Positions:
    """Makes positions (1, prefix + L, D) of the source's, those of the model's prefix tokens
    first. `bare`: the source's class token has no position."""

    table: Tensor
    prefix: int
    old: Grid
    new: Grid
    bare: bool

    def __call__(self, own: Tensor) -> Tensor:
        here = own.shape[1] - prod(self.new)
        tokens = positions.fitted(self.table[:, self.prefix :], self.old, self.new)
        first = own[:, :here]  # as it was drawn
        if here <= self.prefix:
            first = self.table[:, :here]
        elif self.bare:
            first = torch.zeros_like(first)
        return torch.cat([first.to(tokens), tokens], dim=1)


def _changes(found: Size, wanted: Size) -> list[str]:
    """As `kernels.changes`, of shapes."""
    source, here = kernels.Kernel.of(found), kernels.Kernel.of(wanted)
    if source is None or here is None or found[0] != wanted[0]:
        raise ValueError(f"a kernel of patches is {_size(wanted)}")
    return kernels.changes(source, here)


def _shape(tensors: Mapping[str, Tensor], name: str) -> Size | None:
    return tensors[name].shape if name in tensors else None


def _size(shape: Size) -> str:
    return by(shape) or "one number"

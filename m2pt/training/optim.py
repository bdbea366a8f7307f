"""Parameter groups, and the rate of each as a pure function of the step."""

from collections.abc import Set
from math import cos, pi
from typing import Any, Literal

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from m2pt.pathway.config import Pathway
from m2pt.pathway.reparam import auxiliary_names, scale_names
from m2pt.pathway.scale import value_learns_at
from m2pt.training.recipe import Recipe

Role = Literal["target", "auxiliary", "scale"]
Group = dict[str, Any]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[Group]:
    """AdamW groups: `params`, `role`, `peak` (learning rate at its highest) and `weight_decay`.

    - Target: timm's rules. Vectors and what the model names in `no_weight_decay` do not decay;
      layer decay by depth.
    - Trainable auxiliary weights: as the weight beside them, times
      `auxiliary_learning_rate_factor`. Frozen ones are in no group.
    - What a rival adds: as the target's own. LoRA learns at its block's rate, connections, which
      belong to no block, at the head's.
    - λ values: one group with its own rate, no decay and no layer decay.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    auxiliary, scale = auxiliary_names(model), scale_names(model)
    skip: set[str] = getattr(model, "no_weight_decay", set)()
    # Layers of one rate share a group: each group costs AdamW a call per step.
    members: dict[tuple[Role, float, float], list[nn.Parameter]] = {}
    for layer in param_groups_layer_decay(
        model, recipe.weight_decay, skip, layer_decay=recipe.layer_decay
    ):
        rate, decay = recipe.learning_rate * layer["lr_scale"], layer["weight_decay"]
        for parameter in layer["params"]:
            name = names[id(parameter)]
            if name in scale:
                key: tuple[Role, float, float] = _scale_group(recipe)
            elif name in auxiliary:
                key = ("auxiliary", rate * recipe.auxiliary_learning_rate_factor, decay)
            else:
                key = ("target", rate, decay)
            members.setdefault(key, []).append(parameter)
    return [
        {"params": params, "role": role, "peak": peak, "lr": peak, "weight_decay": decay}
        for (role, peak, decay), params in members.items()
    ]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(model, recipe)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def rate_factor(step: int, *, total_steps: int, warmup_steps: int, floor: float) -> float:
    """Fraction of the peak rate at `step` (0-based): linear warm-up, then a cosine to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + cos(pi * min(1.0, done)))


def resting_at(pathway: Pathway, t: float) -> set[Role]:
    """What does not learn at progress `t` of training: held λ values, W' that is trained later."""
    resting: set[Role] = set()
    if not value_learns_at(pathway.scale, t):
        resting.add("scale")
    if t < pathway.training.start:
        resting.add("auxiliary")
    return resting


def set_rates(optimizer: torch.optim.Optimizer, factor: float, *, resting: Set[Role]) -> None:
    """Give every group its peak times `factor`, and those that rest exactly 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["role"] in resting else group["peak"] * factor


def _scale_group(recipe: Recipe) -> tuple[Role, float, float]:
    own = recipe.scale_learning_rate
    rate = recipe.learning_rate * recipe.scale_learning_rate_factor if own is None else own
    return "scale", rate, 0.0

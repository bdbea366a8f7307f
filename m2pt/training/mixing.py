"""Mixup and CutMix by timm, for the modalities where mixing two samples makes sense."""

from collections.abc import Callable

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from m2pt.data.config import DataInfo
from m2pt.training.fit import check_recipe
from m2pt.training.recipe import Recipe

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_mix(recipe: Recipe, info: DataInfo) -> Mix | None:
    """What turns (samples (B, ...), labels (B, ...)) into (mixed samples, targets (B, classes)).

    None where the recipe mixes nothing. Sets of classes are mixed as vectors of 0 and 1 (AudioMAE
    does so). The targets carry the label smoothing. Draws from numpy's
    global generator; samples are mixed within a micro-batch, so results depend on the split.

    Raises:
        ValueError: the modality cannot be mixed in the way asked for.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    check_recipe(recipe, info)
    mixup = Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=info.classes,
        multi_label=info.task == "labels",
        prob=recipe.mixup_probability,
    )

    def mix(samples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if samples.ndim == 5:  # clips: timm cuts the last two of four axes, for all frames alike
            mixed, targets = mix(samples.flatten(1, 2), labels)
            return mixed.view_as(samples), targets
        count, middle = len(samples), len(samples) // 2
        if count % 2 == 0:
            mixed, targets = mixup(samples, labels)
            return mixed, targets
        # timm mixes the first with the last and so on inwards, and refuses odd batches: there the
        # one in the middle is put in twice, to be mixed with itself.
        doubled = torch.tensor([*range(middle + 1), *range(middle, count)], device=samples.device)
        mixed, targets = mixup(samples[doubled], labels[doubled])
        kept = torch.tensor([*range(middle), *range(middle + 1, count + 1)], device=samples.device)
        return mixed[kept], targets[kept]

    return mix

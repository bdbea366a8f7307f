"""What an arm costs in use and in training, beside the plain target: measured, as metrics."""

from contextlib import closing

import torch
from torch import nn

from m2pt.data.samples import Dataset
from m2pt.inference import time_inference
from m2pt.models.build import build_model
from m2pt.pathway.reparam import auxiliary_names, fuse_pathway, scale_names
from m2pt.rivals.join import added_names, merge_rival
from m2pt.training.numerics import dtype_of
from m2pt.training.recipe import TrainingConfig
from m2pt.training.tasks import LEARNING

SAMPLES = 64
"""At most, in the batch that is timed, which is no larger than a batch in training either: that one
the device has room for."""


def cost_of(
    model: nn.Module, config: TrainingConfig, dataset: Dataset, *, device: str
) -> dict[str, float]:
    """`cost/*` of a trained model, which is brought into its form in use, in place: a pathway is
    fused and LoRA merged; with CALM and GATS the auxiliary stays beside the target.

    `cost/inference_ratio` and `cost/samples_per_second` are `m2pt.inference`'s, over a plain model
    that is built here. `cost/trained_parameters` are those that learned beside the target's own,
    `cost/inference_parameters` those that are left beside them in use.
    """
    beside = auxiliary_names(model) | scale_names(model) | added_names(model)
    learned = [model.get_parameter(name) for name in beside]
    trained = sum(parameter.numel() for parameter in learned if parameter.requires_grad)
    merge_rival(fuse_pathway(model))
    plain = build_model(config.model, dataset.info, seed=config.seed)
    plain.to(device, dtype_of(config.numerics))
    samples = dataset.validation
    few = torch.arange(min(SAMPLES, config.recipe.batch_size, len(samples)))
    with closing(samples.stream([few])) as read:
        inputs, labels = next(read)
    given = LEARNING[samples.info.task].given(labels)
    found = time_inference((model, plain), (inputs, *given), config.numerics, device=device)
    return {
        "cost/inference_ratio": found.ratio,
        "cost/samples_per_second": found.samples_per_second,
        "cost/trained_parameters": float(trained),
        "cost/inference_parameters": float(_count(model) - _count(plain)),
    }


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

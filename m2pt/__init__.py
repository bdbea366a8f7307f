"""Multimodal Pathway Transformers: borrow weights from another modality, train, fuse.

Names are imported on first use, so that reading a configuration costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2pt.data.load import load as load_data
    from m2pt.models.build import build_model
    from m2pt.models.config import ModelConfig
    from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
    from m2pt.pathway.controls import control_weights
    from m2pt.pathway.reparam import (
        attach_pathway,
        effective_scales,
        fuse_pathway,
        has_pathway,
        scales,
        set_progress,
    )
    from m2pt.rivals.config import Rival
    from m2pt.rivals.join import attach_rival, merge_rival
    from m2pt.training.loop import Training
    from m2pt.training.recipe import Numerics, Recipe, TrainingConfig

__all__ = [
    "Coverage",
    "Envelope",
    "ModelConfig",
    "Numerics",
    "Pathway",
    "Recipe",
    "Rival",
    "Scale",
    "Training",
    "TrainingConfig",
    "attach_pathway",
    "attach_rival",
    "build_model",
    "control_weights",
    "effective_scales",
    "fuse_pathway",
    "has_pathway",
    "load_data",
    "merge_rival",
    "scales",
    "set_progress",
]

_HOMES = {
    "Coverage": "m2pt.pathway.config:Coverage",
    "Envelope": "m2pt.pathway.config:Envelope",
    "ModelConfig": "m2pt.models.config:ModelConfig",
    "Numerics": "m2pt.training.recipe:Numerics",
    "Pathway": "m2pt.pathway.config:Pathway",
    "Recipe": "m2pt.training.recipe:Recipe",
    "Scale": "m2pt.pathway.config:Scale",
    "Rival": "m2pt.rivals.config:Rival",
    "Training": "m2pt.training.loop:Training",
    "TrainingConfig": "m2pt.training.recipe:TrainingConfig",
    "attach_pathway": "m2pt.pathway.reparam:attach_pathway",
    "attach_rival": "m2pt.rivals.join:attach_rival",
    "build_model": "m2pt.models.build:build_model",
    "control_weights": "m2pt.pathway.controls:control_weights",
    "effective_scales": "m2pt.pathway.reparam:effective_scales",
    "fuse_pathway": "m2pt.pathway.reparam:fuse_pathway",
    "has_pathway": "m2pt.pathway.reparam:has_pathway",
    "load_data": "m2pt.data.load:load",
    "merge_rival": "m2pt.rivals.join:merge_rival",
    "scales": "m2pt.pathway.reparam:scales",
    "set_progress": "m2pt.pathway.reparam:set_progress",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found: object = getattr(import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

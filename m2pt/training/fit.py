"""Whether a recipe fits what it trains on. Imports no torch, so that a plan can ask."""

from m2pt.data.config import DataInfo
from m2pt.training.recipe import Recipe


def check_recipe(recipe: Recipe, info: DataInfo) -> None:
    """Raise ValueError where samples of the modality cannot be mixed in the way asked for."""
    if recipe.mixup and info.modality == "point":
        raise ValueError("mixup: points have no order in which to blend two clouds; set it to 0")
    if recipe.cutmix and info.modality == "point":
        raise ValueError(
            "cutmix: cuts rectangles out of images, spectrograms and clips, not point clouds; "
            "set it to 0"
        )

"""A training small enough for a test: 90 real digits, two blocks of width 16."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.pathway.config import Pathway
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, Recipe, TrainingConfig
from m2pt.training.world import World

MODEL = ModelConfig(width=16, depth=2, heads=2, tokenizer=Tokenizer(patch=4))
DATA = DataConfig("digits", limit=90)
RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=3e-3)
FP64 = Numerics(precision="fp64")


def config_of(pathway: Pathway | None = None, **recipe: Any) -> TrainingConfig:
    """The small training, with other fields of the recipe where given."""
    return TrainingConfig(MODEL, DATA, pathway, replace(RECIPE, **recipe))


def digits() -> Dataset:
    """The data set that every configuration here names."""
    return load(DATA)


def block_weights(seed: int = 7, model: ModelConfig = MODEL) -> dict[str, Tensor]:
    """Block weights that a model drawn from another seed would have."""
    drawn = build_model(model, digits().info, seed=seed).state_dict()
    names = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    return {name: value for name, value in drawn.items() if name.endswith(names)}


def training_of(config: TrainingConfig, world: World | None = None) -> Training:
    """A training of `config`; with what borrows, beside one auxiliary called `audio`."""
    borrows = config.pathway or (config.rival and config.rival.borrows)
    auxiliaries = {"audio": block_weights(model=config.model)} if borrows else {}
    return Training(config, load(config.data), auxiliaries, world=world or World())


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same names and the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

"""What a target would take of weights: nothing is built, and nothing is copied."""

import torch

from m2pt.data.config import DataInfo
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig
from m2pt.weights.deciding import Slots
from m2pt.weights.start import decide
from m2pt.weights.started import Started
from m2pt.weights.whole import WholeWeights


def foretold(config: ModelConfig, info: DataInfo, weights: WholeWeights) -> Started:
    """What `start_from` will say of a model of this configuration; without taking memory.

    Raises:
        ValueError: as `start_from`.
    """
    with torch.device("meta"):
        model = build_model(config, info, seed=0)
    moves, unused = decide(Slots.of(model, info.modality), weights)
    return Started(tuple(move.placed for move in moves), unused)

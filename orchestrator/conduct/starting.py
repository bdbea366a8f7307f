"""What the target takes of the weights that it starts from, told before a trial is."""

from typing import Any

from m2pt.data.describe import describe
from m2pt.pretrain.config import PretrainConfig
from orchestrator.config.experiment import Experiment


def started_from(experiment: Experiment, weights: Any) -> Any:
    """The `Started` of the file's own model on `WholeWeights`; takes no memory for the model.

    Raises:
        ValueError: blocks do not fit; `m2pt.weights.blocks.check_fit` says it better.
    """
    from m2pt.weights.foretold import foretold

    return foretold(experiment.model, describe(experiment.data), weights)


def started_pretrained(experiment: Experiment, config: PretrainConfig, *, whole: bool) -> Any:
    """As `started_from`, of weights that a pre-training is going to make, or has made."""
    from m2pt.pretrain.network import whole_to_be
    from m2pt.weights.whole import WholeWeights

    made = whole_to_be(config, experiment.model, describe(config.data))
    return started_from(experiment, made if whole else WholeWeights(made.blocks))

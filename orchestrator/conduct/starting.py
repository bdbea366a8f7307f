"""What the target takes of the weights that it starts from, told before a trial is."""

from typing import Any

from m2pt.data.config import DataConfig, DataInfo
from m2pt.data.describe import describe
from m2pt.data.schema import DataAway
from m2pt.pretrain.config import PretrainConfig
from orchestrator.config.experiment import Experiment
from orchestrator.errors import RequestError, StorageError


def started_from(experiment: Experiment, weights: Any) -> Any:
    """The `Started` of the file's own model on `WholeWeights`; takes no memory for the model.

    Raises:
        ValueError: blocks do not fit; `m2pt.weights.blocks.check_fit` says it better.
        RequestError, StorageError: the data cannot be read.
    """
    from m2pt.weights.foretold import foretold

    return foretold(experiment.model, _described(experiment.data, "data"), weights)


def started_pretrained(experiment: Experiment, config: PretrainConfig, *, whole: bool) -> Any:
    """As `started_from`, of weights that a pre-training is going to make, or has made."""
    from m2pt.pretrain.network import whole_to_be
    from m2pt.weights.whole import WholeWeights

    made = whole_to_be(config, experiment.model, _described(config.data, "target.pretrain.data"))
    return started_from(experiment, made if whole else WholeWeights(made.blocks))


def _described(data: DataConfig, key: str) -> DataInfo:
    try:
        return describe(data)
    except DataAway as error:
        raise StorageError(f"{key}: {error}") from error
    except (ValueError, OSError) as error:
        raise RequestError(f"{key}: {error}") from error

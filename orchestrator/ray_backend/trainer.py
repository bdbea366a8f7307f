"""Ray Train's trainer, without what serves data sets of Ray Data: gangs read their own data."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback


class PlainTrainer(TorchTrainer):  # type: ignore[misc]  # ray ships no types
    """It saves each gang an actor, which would take two seconds of a core to start, to do nothing.

    The method that it narrows is Ray's own and of no promised stability: pyproject.toml admits the
    one minor version of Ray that it was tried with, and another one that lacks it opens gangs as
    before.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, DatasetsCallback)]

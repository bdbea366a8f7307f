"""Ray Train's trainer, without what gangs have no use for: each would be a process of its own.

What is narrowed here is Ray's own and of no promised stability: pyproject.toml admits the one minor
version of Ray that it was tried with.
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class PlainTrainer(TorchTrainer):  # type: ignore[misc]  # ray ships no types
    """Nobody serves data sets of Ray Data: gangs read their own data."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, DatasetsCallback)]


class OneMachineTrainer(PlainTrainer):
    """As above, where there is one machine and never another: no autoscaler is asked for more, and
    no gang waits until whoever would ask it has started (3 s of a core)."""

    def _initialize_and_run_controller(self, **words: Any) -> Any:
        policy = OneMachinePolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**words | {"scaling_policy": policy})


class OneMachinePolicy(FixedScalingPolicy):  # type: ignore[misc]  # ray ships no types
    """So many workers, from what there is."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray registers with its coordinator of autoscaling here."""

    def _maybe_send_resource_request(self) -> None:
        """And tells it here what it needs."""

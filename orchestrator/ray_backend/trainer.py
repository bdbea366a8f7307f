"""Ray Train's trainer, without what gangs have no use for: each would be a process of its own.

What is narrowed here is Ray's own and of no promised stability: pyproject.toml admits the one minor
version of Ray that it was tried with.
"""

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util.placement_group import PlacementGroup, remove_placement_group

from orchestrator import environment


class PlainTrainer(TorchTrainer):  # type: ignore[misc]  # ray ships no types
    """Nobody serves data sets of Ray Data: gangs read their own data."""

    _own = False
    _needless: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, self._needless)]

    def _initialize_and_run_controller(self, **words: Any) -> Any:
        """As Ray does it, but for variables that the controller alone reads.

        Ray hands them on as a runtime environment; each process that has one starts Python and
        imports Ray twice, and none that Ray keeps ready is taken.
        """
        said = environment.ray_controller(watched=not self._own)
        if not self._own and get_env_vars_to_propagate().keys() - said.keys():
            return super()._initialize_and_run_controller(**words)  # the user's, for every worker
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        controller = ray.remote(num_cpus=0, label_selector=here)(GangController)
        gang = controller.remote(said, **words)
        ray.get(gang.run.remote())
        return ray.get(gang.get_result.remote())


class OneMachineTrainer(PlainTrainer):
    """As above, where there is one machine and never another: no autoscaler is asked for more, and
    no gang waits until whoever would ask it has started (3 s of a core). The driver, without which
    there is no cluster, frees itself what a dead controller leaves reserved (`free`): no process
    stands by for that."""

    _own = True
    _needless = (DatasetsCallback, PlacementGroupCleanerCallback)

    def _initialize_and_run_controller(self, **words: Any) -> Any:
        policy = OneMachinePolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**words | {"scaling_policy": policy})


class GangController(TrainController):  # type: ignore[misc]  # ray ships no types
    """Ray's, with these variables in the environment of its process."""

    def __init__(self, variables: dict[str, str], **words: Any) -> None:
        environment.add(variables)
        super().__init__(**words)


class OneMachinePolicy(FixedScalingPolicy):  # type: ignore[misc]  # ray ships no types
    """So many workers, from what there is."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray registers with its coordinator of autoscaling here."""

    def _maybe_send_resource_request(self) -> None:
        """And tells it here what it needs."""


def free(places: str) -> None:
    """Give up the reservation of a gang that is gone, by its id; nothing, where that has been
    done."""
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(places))))

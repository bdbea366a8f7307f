"""What this project writes to the environment for Ray."""

import pytest

from orchestrator import environment

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


@pytest.mark.parametrize("said", ["0", "1"])
def test_only_a_joined_cluster_is_watched_and_as_the_user_says(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PREEMPTION_WATCHER", said)
    assert environment.ray_controller(watched=False)[WATCHER] == "0"
    assert environment.ray_controller(watched=True)[WATCHER] == said

"""What this project writes to the environment for Ray."""

import os
from unittest import mock

import pytest

from orchestrator import environment

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


@pytest.mark.parametrize("said", ["0", "1"])
def test_only_a_joined_cluster_is_watched_and_as_the_user_says(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PREEMPTION_WATCHER", said)
    with mock.patch.dict(os.environ):
        environment.prepare_ray(local=True)
        assert os.environ[WATCHER] == "0"
        environment.prepare_ray(local=False)
        assert os.environ[WATCHER] == said

"""For all tests: Ray's settings stand before anything imports Ray, as in the command line."""

import pytest
import torch

from orchestrator import environment

environment.prepare_ray(local=True)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small lose more to waiting threads than they gain."""
    torch.set_num_threads(1)

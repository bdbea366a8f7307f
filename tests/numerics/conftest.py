"""What all numerical tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small lose more to waiting threads than they gain."""
    torch.set_num_threads(1)

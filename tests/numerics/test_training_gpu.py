"""The loop on an accelerator: exact again when resumed, and near to what the CPU does."""

from dataclasses import replace

import pytest
import torch

from m2pt.pathway.config import Pathway
from m2pt.training.recipe import Numerics
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import from_bytes, to_bytes
from m2pt.training.world import World
from tests.numerics.training_setup import RECIPE, config_of, same_bits, training_of

GPU = World(device="cuda:0")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # Asked for by name, cuBLAS says that only an environment variable makes it deterministic.
    pytest.mark.filterwarnings("ignore:.*CUBLAS_WORKSPACE_CONFIG"),
]


@pytest.mark.parametrize("numerics", [Numerics(), Numerics(precision="bf16")])
def test_stopped_and_resumed_is_the_same(numerics: Numerics) -> None:
    config = replace(config_of(Pathway(), epochs=4), numerics=numerics)
    whole, first = training_of(config, GPU), MemorySession(GPU, stop_after=2)
    drive(whole, MemorySession(GPU))
    drive(training_of(config, GPU), first)
    assert first.state is not None
    resumed = training_of(config, GPU)
    drive(resumed, MemorySession(GPU, state=from_bytes(to_bytes(first.state))))
    assert same_bits(whole.model.state_dict(), resumed.model.state_dict())


def test_the_gpu_agrees_with_the_cpu() -> None:
    config = replace(config_of(Pathway()), recipe=RECIPE)
    on_gpu, on_cpu = (list(training_of(config, world).epochs()) for world in (GPU, World()))
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-3)

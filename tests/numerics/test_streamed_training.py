"""Training on a streamed table: who reads changes nothing, and resumed it is the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.models.config import Tokenizer
from m2pt.training.loop import Training
from m2pt.training.recipe import TrainingConfig
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import from_bytes, to_bytes
from m2pt.training.world import World
from tests.numerics.training_setup import MODEL, config_of, same_bits
from tests.unit.test_data_stream import table_of


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """Four epochs over 128 streamed point clouds, augmented."""
    data = DataConfig(table_of("shapes", 16, tmp_path), window=40, augment="standard", limit=128)
    model = replace(MODEL, tokenizer=Tokenizer(groups=8, group_size=8))
    return replace(config_of(epochs=4, mixup=0.0), data=data, model=model)


def training_of(config: TrainingConfig, loader_workers: int = 2) -> Training:
    return Training(config, load(config.data), {}, world=World(loader_workers=loader_workers))


@pytest.mark.slow
def test_loader_workers_change_no_bit(config: TrainingConfig) -> None:
    states = []
    for workers in (0, 1, 3):
        training = training_of(config, workers)
        losses = [report.metrics for report in training.epochs()]
        states.append((training.model.state_dict(), losses))
    for state, losses in states[1:]:
        assert same_bits(state, states[0][0])
        assert losses == states[0][1]


@pytest.mark.slow
def test_four_epochs_are_two_and_two(config: TrainingConfig) -> None:
    whole = training_of(config)
    drive(whole, MemorySession())
    session = MemorySession(stop_after=2)
    assert drive(training_of(config), session) == "stopped"
    assert session.state is not None
    rest = training_of(config)
    drive(rest, MemorySession(state=from_bytes(to_bytes(session.state))))
    assert same_bits(rest.model.state_dict(), whole.model.state_dict())

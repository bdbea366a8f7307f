"""Pre-training on two workers (gloo, two processes) against one: the same weights, to rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.mae import LOSS, MaskedAutoencoding
from m2pt.training import numerics as numerics_module
from m2pt.training.recipe import Numerics
from m2pt.training.session import FolderSession, drive
from m2pt.training.world import World
from tests.numerics.two_workers import WORLD, on_two_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MODEL = ModelConfig(width=16, depth=2, heads=2)
FP64 = Numerics(precision="fp64")
CLOUDS = Tokenizer(groups=6, group_size=5, norm="batch")
# batches of 10 leave one sample: a rank without any
CASES = {
    "digits": PretrainConfig(DataConfig("digits", limit=31), Tokenizer(patch=4), 2, batch_size=10),
    "statistics": PretrainConfig(DataConfig("shapes", limit=21), CLOUDS, 2, batch_size=10),
    "tones": PretrainConfig(DataConfig("tones", limit=16), Tokenizer(patch=16), 2, batch_size=8),
}


def _run(name: str, world: World) -> tuple[list[float], dict[str, Tensor]]:
    run = MaskedAutoencoding(CASES[name], MODEL, numerics=FP64, world=world)
    losses = [report.metrics[LOSS] for report in run.epochs()]
    return losses, run.block_weights()


def _act(world: World, folder: Path) -> None:
    found = {name: _run(name, world) for name in CASES}
    torch.save(found, folder / f"{world.rank}.pt")
    _half_and_whole(world, folder)


def _half_and_whole(world: World, folder: Path) -> None:
    """One epoch on two workers, to be gone on with by one."""
    session = FolderSession(folder / "half", world, stop_after=1)
    run = MaskedAutoencoding(CASES["digits"], MODEL, numerics=FP64, world=world)
    assert drive(run, session) == "stopped"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_workers(_act, folder)
    return folder


def test_two_workers_are_one(ranks: Path) -> None:
    first, second = (torch.load(ranks / f"{rank}.pt") for rank in range(WORLD))
    for name in CASES:
        losses, weights = _run(name, World())
        assert first[name][0] == second[name][0]
        assert first[name][0] == pytest.approx(losses, rel=1e-12)
        for key, weight in weights.items():
            assert torch.equal(first[name][1][key], second[name][1][key])
            torch.testing.assert_close(first[name][1][key], weight, rtol=1e-9, atol=1e-12)


def test_one_worker_goes_on_from_the_state_of_two(ranks: Path) -> None:
    run = MaskedAutoencoding(CASES["digits"], MODEL, numerics=FP64)
    assert drive(run, FolderSession(ranks / "half")) == "finished"
    _, weights = _run("digits", World())
    for key, weight in run.block_weights().items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("numerics", [Numerics("bf16"), FP64, Numerics(compile=True)])
def test_other_arithmetic_learns_the_same(
    numerics: Numerics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics_module, "COMPILE_BACKEND", "eager")
    config = replace(CASES["digits"], batch_size=16)
    plain = [report.metrics[LOSS] for report in MaskedAutoencoding(config, MODEL).epochs()]
    run = MaskedAutoencoding(config, MODEL, numerics=numerics)
    losses = [report.metrics[LOSS] for report in run.epochs()]
    assert losses == pytest.approx(plain, rel=2e-2)
    wanted = torch.float64 if numerics == FP64 else torch.float32
    assert {weight.dtype for weight in run.block_weights().values()} == {wanted}

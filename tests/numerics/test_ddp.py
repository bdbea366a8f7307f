"""Two workers (gloo, two processes) against one: the same training, to rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.models.config import Tokenizer
from m2pt.pathway.config import Envelope, Pathway, Scale
from m2pt.rivals.config import Rival
from m2pt.training import numerics as numerics_module
from m2pt.training.evaluate import evaluate, logits
from m2pt.training.recipe import Numerics, TrainingConfig
from m2pt.training.session import FolderSession, MemorySession, drive
from m2pt.training.world import World
from tests.numerics.training_setup import (
    DATA,
    FP64,
    MODEL,
    RECIPE,
    config_of,
    same_bits,
    training_of,
)
from tests.numerics.two_workers import WORLD, on_two_workers

SHARED = Scale(init=0.1, granularity="block", envelope=Envelope(kind="cosine"))
CLOUDS = TrainingConfig(
    replace(MODEL, tokenizer=Tokenizer(groups=6, group_size=5, norm="batch")),
    DataConfig("shapes", limit=31),
    recipe=replace(RECIPE, batch_size=10),
)
CASES = {
    "baseline": config_of(),
    "paper": config_of(Pathway(), accumulate=2, clip_grad=1.0),
    "frozen": config_of(Pathway(trainable=False, scale=SHARED), layer_decay=0.7),
    "probe, averaged": config_of(Pathway(trainable=False), train="probe", ema_decay=0.7),
    "each sample twice": replace(
        config_of(), data=replace(DATA, augment="light"), recipe=replace(RECIPE, repeats=2)
    ),
    "cross-attention": replace(config_of(accumulate=2), rival=Rival("calm", every=1)),
    "gathered": replace(config_of(train="probe"), rival=Rival("gats", every=2)),
    # 90 samples in batches of 89 leave one: a rank without any, in both of its micro-batches
    "last batch of one": config_of(Pathway(), batch_size=89, accumulate=2),
    # statistics over a batch: of all ranks together, with shares of different sizes and none
    "batch statistics": CLOUDS,
    "parts": TrainingConfig(
        CLOUDS.model, DataConfig("shape-parts", limit=35), recipe=replace(RECIPE, batch_size=10)
    ),
    "sets of classes": TrainingConfig(
        replace(MODEL, tokenizer=Tokenizer(patch=8)),
        DataConfig("scenes", limit=31),
        recipe=replace(RECIPE, batch_size=10),
    ),
    "batch statistics, accumulated": replace(CLOUDS, recipe=replace(CLOUDS.recipe, accumulate=3)),
}
PRECISIONS = {"fp32": (Numerics(), 1e-5), "fp64": (FP64, 1e-12)}
SINGLE = ("baseline", "paper", "batch statistics")  # in fp32 as well
COMPILED = (Numerics(), 1e-5)


def _outputs(config: TrainingConfig, world: World) -> tuple[Tensor, dict[str, float]]:
    training = training_of(config, world)
    report = next(iter(training.epochs()))
    validation = load(config.data).validation
    return logits(training.model, validation, 64, config.numerics), report.metrics


def _all_cases(world: World, folder: Path) -> None:
    """In one process group, one after the other, as the trials of a gang are."""
    found = {
        (name, precision): _outputs(replace(config, numerics=numerics), world)
        for name, config in CASES.items()
        for precision, (numerics, _) in PRECISIONS.items()
        if precision == "fp64" or name in SINGLE
    }
    numerics_module.COMPILE_BACKEND = "eager"
    numerics = Numerics(compile=True)
    found["paper", "compiled"] = _outputs(replace(CASES["paper"], numerics=numerics), world)
    assert found["paper", "compiled"][1].pop("compile/graphs") >= 1
    torch.save(found, folder / f"{world.rank}.pt")


STOPPING = config_of(Pathway(), epochs=4)


def _stop_and_resume(world: World, folder: Path) -> None:
    """One rank asks to stop: all do, and go on from the folder. Then what ends in errors."""
    asked = FolderSession(folder / "states", world, stop_after=2 if world.rank == 1 else None)
    assert drive(training_of(STOPPING, world), asked) == "stopped"
    resumed = training_of(STOPPING, world)
    assert drive(resumed, FolderSession(folder / "states", world)) == "finished"
    whole = training_of(STOPPING, world)
    drive(whole, MemorySession(world))
    assert same_bits(resumed.model.state_dict(), whole.model.state_dict())
    torch.save(whole.model.state_dict(), folder / f"whole-{world.rank}.pt")
    one_sample = load(replace(STOPPING.data, limit=1)).train  # the other rank has none
    found = evaluate(whole.model, one_sample, 8, STOPPING.numerics, world=world)
    assert found == pytest.approx(evaluate(whole.model, one_sample, 8, STOPPING.numerics))
    apart = MemorySession(world, state=None if world.rank else resumed.capture())
    with pytest.raises(RuntimeError, match=r"different epochs \(0 to 4\)"):
        drive(training_of(STOPPING, world), apart)
    with pytest.raises(FloatingPointError, match="epoch 1, step"):
        next(iter(training_of(config_of(learning_rate=1e30, warmup_epochs=0), world).epochs()))


def _act(world: World, folder: Path) -> None:
    _all_cases(world, folder)
    _stop_and_resume(world, folder)


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left behind."""
    folder = tmp_path_factory.mktemp("ddp")
    on_two_workers(_act, folder)
    return folder


@pytest.mark.slow
def test_two_workers_train_what_one_does(acted: Path) -> None:
    ranks = [torch.load(acted / f"{rank}.pt") for rank in range(WORLD)]
    for (name, precision), (outputs, metrics) in ranks[0].items():
        numerics, tolerance = PRECISIONS.get(precision, COMPILED)
        others, other_metrics = ranks[1][name, precision]
        assert torch.equal(outputs, others), (name, precision)
        assert metrics == other_metrics, (name, precision)
        alone, alone_metrics = _outputs(replace(CASES[name], numerics=numerics), World())
        assert (outputs - alone).norm() <= tolerance * alone.norm(), (name, precision)
        assert metrics == pytest.approx(alone_metrics, rel=tolerance), (name, precision)


@pytest.mark.slow
def test_a_stop_of_one_rank_stops_all_and_resuming_is_exact(acted: Path) -> None:
    one, other = (torch.load(acted / f"whole-{rank}.pt") for rank in range(WORLD))
    assert same_bits(one, other)


def test_several_workers_need_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="need a process group"):
        training_of(config_of(), World(0, 2))

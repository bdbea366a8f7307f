"""FSDP2 on two workers (gloo, two processes) against DDP: the same training, to rounding."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.models.build import build_model
from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
from m2pt.pathway.reparam import frozen_auxiliary_names, fuse_pathway
from m2pt.pathway.whole import gathered, is_sharded
from m2pt.training import numerics as numerics_module
from m2pt.training.evaluate import evaluate, logits
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, TrainingConfig
from m2pt.training.session import FolderSession, drive
from m2pt.training.sharding import Shards
from m2pt.training.world import Sharding, World
from tests.numerics.test_ddp import CLOUDS
from tests.numerics.training_setup import FP64, block_weights, config_of, digits, same_bits
from tests.numerics.two_workers import WORLD, on_two_workers

pytestmark = pytest.mark.slow

RAMPED = Envelope(kind="cosine")
SPLIT = Scale(init=0.1, granularity="block", split_qkv=True, envelope=RAMPED)
CASES: dict[str, tuple[TrainingConfig, tuple[str, ...], tuple[str, ...]]] = {
    # configuration, auxiliaries, precisions
    "baseline": (config_of(clip_grad=1.0), (), ("fp64",)),
    "trainable": (config_of(Pathway(), accumulate=2), ("audio",), ("fp32", "fp64", "bf16")),
    "two frozen ones, shared by a block": (
        config_of(Pathway(trainable=False, scale=SPLIT), layer_decay=0.7),
        ("audio", "point"),
        ("fp64",),
    ),
    # 90 samples in batches of 89 leave one: a rank without any, in both of its micro-batches
    "shared by all": (
        config_of(
            Pathway(scale=Scale(init=0.1, granularity="global")),
            clip_grad=0.1,
            accumulate=2,
            batch_size=89,
        ),
        ("audio",),
        ("fp32", "fp64"),
    ),
    "a change of low rank, in part": (
        config_of(
            Pathway(
                Coverage(linears=("q", "v", "fc1")),
                scale=Scale(init=0.1, clamp=0.2),
                trainable="rank:2",
                keep="bf16",
            )
        ),
        ("audio",),
        ("fp64",),
    ),
    "fixed": (config_of(Pathway(scale=Scale(init=0.1, learned=False))), ("audio",), ("fp64",)),
    "batch statistics": (
        replace(CLOUDS, recipe=replace(CLOUDS.recipe, accumulate=2)),
        (),
        ("fp64",),
    ),
}
# AdamW makes steps of full size of what is rounding alone: the gradient of k's bias.
TOLERANCES = {"fp32": 2e-5, "fp64": 1e-12, "bf16": 2e-5}
FROZEN = "two frozen ones, shared by a block"


def _training(case: str, world: World, precision: Any = "fp64", **recipe: Any) -> Training:
    config, names, _ = CASES[case]
    config = replace(config, numerics=Numerics(precision), recipe=replace(config.recipe, **recipe))
    weights = {name: block_weights(7 + i, config.model) for i, name in enumerate(names)}
    return Training(config, load(config.data), weights, world=world)


def _found(training: Training) -> dict[str, Any]:
    """What it learned in its epochs, as any rank sees it."""
    *_, last = training.epochs()
    return {
        "numbers": last.metrics | last.scales,
        "weights": dict(gathered(training.model).state_dict()),
        "sharded": {n for n, p in training.model.named_parameters() if is_sharded(p)},
    }


def _fused(training: Training, world: World) -> dict[str, Any]:
    """Fused on every rank from what was gathered; and on one worker from the state."""
    config, samples = training.config, digits().validation
    before = logits(training.model, samples, 64, config.numerics)
    plain = fuse_pathway(gathered(training.model))
    found: dict[str, Any] = {"before": before, "after": logits(plain, samples, 64, config.numerics)}
    found |= {"fused": plain.state_dict(), "frozen": frozen_auxiliary_names(training.model)}
    with pytest.raises(ValueError, match="is sharded"):
        fuse_pathway(training.model)
    if world.rank:
        with pytest.raises(RuntimeError, match="gathered on rank 0"):
            training.capture()
        return found
    alone = _training(FROZEN, World())
    alone.restore(training.capture())
    return found | {"from state": fuse_pathway(alone.model).state_dict()}


def _compiled(world: World, numerics: Numerics = Numerics()) -> dict[str, Any]:  # noqa: B008  # frozen
    """One block and batches of one size: few graphs."""
    config = config_of(Pathway(), epochs=1, warmup_epochs=0, batch_size=90)
    config = replace(config, numerics=numerics, model=replace(config.model, depth=1))
    weights = {"audio": block_weights(model=config.model)}
    with patch.object(numerics_module, "COMPILE_BACKEND", "eager"):
        return _found(Training(config, digits(), weights, world=world))


def _evaluated(training: Training, limit: int, world: World) -> bool:
    """Whether ranks with unequal numbers of batches find what one finds that has all samples."""
    numerics, samples = training.config.numerics, load(DataConfig("digits", limit=limit)).train
    found = evaluate(training.model, samples, 4, numerics, world=world)
    alone = evaluate(gathered(training.model), samples, 4, numerics)
    return found == pytest.approx(alone, rel=1e-12)


def _act(ddp: World, folder: Path) -> None:
    """In one process group, one after the other, as the trials of a gang are."""
    fsdp = replace(ddp, sharding="fsdp2")
    found: dict[Any, Any] = {}
    for case, (_, _, precisions) in CASES.items():
        for precision in precisions:
            trainings = (_training(case, world, precision) for world in (ddp, fsdp))
            found[case, precision] = [_found(training) for training in trainings]
    with patch.object(Shards, "exchange_scales"):
        found["not exchanged"] = _found(_training("shared by all", fsdp, "fp64"))
    found["compiled"] = _compiled(ddp), _compiled(fsdp, Numerics(compile=True))
    fused = _training(FROZEN, fsdp)
    list(fused.epochs())
    found["uneven"] = [_evaluated(fused, limit, fsdp) for limit in (1, 9)]
    found["fused"] = _fused(fused, fsdp)
    kinds: tuple[Sharding, ...] = ("fsdp2", "none")
    for one in kinds:
        for other in kinds:
            found[one, other] = _in_two_parts(ddp, folder / f"{one}-{other}", one, other)
    torch.save(found, folder / f"{ddp.rank}.pt")


def _in_two_parts(world: World, folder: Path, one: Sharding, other: Sharding) -> dict[str, Any]:
    """Two epochs on workers of one kind, the third on workers of another."""
    for kind, stop_after in ((one, 2), (other, None)):
        here = replace(world, sharding=kind)
        training = _training(FROZEN, here, epochs=3)
        drive(training, FolderSession(folder, here, stop_after=stop_after))
    return dict(gathered(training.model).state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fsdp")
    on_two_workers(_act, place)
    return place


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[Any, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def _distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Of all weights together, as a fraction of their norm."""
    assert found.keys() == wanted.keys()
    apart = torch.stack([(found[name] - wanted[name]).double().norm() for name in wanted]).norm()
    return float(apart / torch.stack([w.double().norm() for w in wanted.values()]).norm())


def _values(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.endswith(".value")}


@pytest.mark.parametrize("case", CASES)
def test_sharded_workers_train_what_others_do(ranks: list[dict[Any, Any]], case: str) -> None:
    for precision in CASES[case][2]:
        tolerance = TOLERANCES[precision]
        ddp, fsdp = ranks[0][case, precision]
        assert _distance(fsdp["weights"], ddp["weights"]) <= tolerance, precision
        if values := _values(ddp["weights"]):
            assert _distance(_values(fsdp["weights"]), values) <= tolerance / 10, precision
        assert fsdp["numbers"] == pytest.approx(ddp["numbers"], rel=tolerance / 10), precision
        other = ranks[1][case, precision][1]
        assert same_bits(fsdp["weights"], other["weights"])
        assert fsdp["numbers"] == other["numbers"]


@pytest.mark.parametrize("case", CASES)
def test_all_but_scales_is_sharded(ranks: list[dict[Any, Any]], case: str) -> None:
    ddp, fsdp = ranks[0][case, "fp64"]
    assert ddp["sharded"] == set()
    whole = fsdp["weights"].keys() - fsdp["sharded"]
    assert {name for name in whole if "running" not in name and "num_batches" not in name} == set(
        _values(fsdp["weights"])
    )


def test_ranks_with_unequal_shares_evaluate_together(ranks: list[dict[Any, Any]]) -> None:
    assert [rank["uneven"] for rank in ranks] == [[True, True]] * 2


def test_compiled_blocks_train_the_same(ranks: list[dict[Any, Any]]) -> None:
    wanted, compiled = ranks[0]["compiled"]
    assert compiled["numbers"].pop("compile/graphs") >= 2
    assert compiled["numbers"] == pytest.approx(wanted["numbers"], rel=1e-5)


def test_scales_whose_gradients_are_not_exchanged_are_noticed(ranks: list[dict[Any, Any]]) -> None:
    case = "shared by all", "fp64"
    wanted, (found, other) = ranks[0][case][0], [rank["not exchanged"] for rank in ranks]
    assert _distance(_values(found["weights"]), _values(wanted["weights"])) > 1e-4
    assert not same_bits(_values(found["weights"]), _values(other["weights"]))


def test_what_was_gathered_fuses_to_the_plain_target(ranks: list[dict[Any, Any]]) -> None:
    one, other = (rank["fused"] for rank in ranks)
    config = CASES[FROZEN][0]
    plain = build_model(config.model, digits().info, seed=99).double()
    assert list(one["fused"]) == list(plain.state_dict())
    plain.load_state_dict(one["fused"], strict=True)
    assert same_bits(one["fused"], other["fused"])
    assert same_bits(one["fused"], one["from state"])
    after = logits(plain, digits().validation, 64, FP64)
    for found in (one["before"], one["after"], other["before"]):
        assert (found - after).norm() <= 1e-12 * after.norm()


def test_a_frozen_auxiliary_stays_what_it_was(ranks: list[dict[Any, Any]]) -> None:
    fsdp = ranks[0][FROZEN, "fp64"][1]
    frozen = ranks[0]["fused"]["frozen"]
    fresh = _training(FROZEN, World()).model.state_dict()
    assert len(frozen) == 16
    assert all(torch.equal(fsdp["weights"][name], fresh[name]) for name in frozen)


def test_a_state_goes_on_under_any_sharding(folder: Path, ranks: list[dict[Any, Any]]) -> None:
    whole = ranks[0]["none", "none"]
    for one, other in (("fsdp2", "fsdp2"), ("fsdp2", "none"), ("none", "fsdp2")):
        assert _distance(ranks[0][one, other], whole) <= 1e-12
        assert same_bits(ranks[0][one, other], ranks[1][one, other])
    # The same file; and one worker reads it.
    states = [FolderSession(folder / kind).latest() for kind in ("fsdp2-none", "none-none")]
    ours, theirs = (state.tensors for state in states if state is not None)
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.items()
    }
    (folder / "fsdp2-none" / "epoch-000003.safetensors").unlink()
    alone = _training(FROZEN, World(), epochs=3)
    assert drive(alone, FolderSession(folder / "fsdp2-none")) == "finished"
    assert _distance(alone.model.state_dict(), whole) <= 1e-12

"""Averaged weights, repeated augmentation, clips that are mixed, and linear probing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.models.build import build_model
from m2pt.pathway.config import Pathway, Scale
from m2pt.pathway.reparam import auxiliary_names, fuse_pathway, scale_names
from m2pt.training.evaluate import evaluate
from m2pt.training.loop import Training
from m2pt.training.mixing import build_mix
from m2pt.training.recipe import Recipe, TrainingConfig
from m2pt.training.state import from_bytes, to_bytes
from orchestrator.conduct.supply import read_weights
from orchestrator.config.io import parse_experiment
from orchestrator.promotion.export import Identity, Trained, export_model
from tests.numerics.training_setup import (
    DATA,
    MODEL,
    block_weights,
    config_of,
    digits,
    same_bits,
    training_of,
)

pytestmark = pytest.mark.slow

FROZEN = Pathway(trainable=False, scale=Scale(init=0.1))
SHARED = Pathway(scale=Scale(init=0.1, granularity="global"))


def held(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


@pytest.mark.parametrize("pathway", [None, FROZEN, SHARED], ids=["plain", "frozen", "shared"])
def test_the_average_is_what_is_evaluated_and_kept(pathway: Pathway | None) -> None:
    config = config_of(pathway, ema_decay=0.7)
    averaged, plain = training_of(config), training_of(config_of(pathway))
    expected = {name: value.double() for name, value in held(averaged).items()}
    steps: Iterator[Any] = iter(range(99))

    def follow(*_: Any) -> None:
        next(steps)
        for name, value in plain.model.state_dict().items():
            expected[name].lerp_(value.double(), 1 - 0.7)

    plain._optimizer.register_step_post_hook(follow)
    reports = list(averaged.epochs())
    as_is = list(plain.epochs())
    assert next(steps) == 6  # three steps in each of two epochs
    assert same_bits(held(averaged), held(plain))  # training itself goes on as without
    assert [r.metrics["train/loss"] for r in reports] == [r.metrics["train/loss"] for r in as_is]
    averaged.settle()
    final = held(averaged)
    for name, value in final.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not same_bits(final, held(plain))
    found = evaluate(averaged.model, digits().validation, 128, config.numerics)
    assert found["loss"] == pytest.approx(reports[-1].metrics["val/loss"], abs=1e-6)
    assert reports[-1].metrics["val/loss"] != as_is[-1].metrics["val/loss"]


def test_the_average_holds_no_frozen_auxiliary_and_each_scale_once() -> None:
    training = training_of(config_of(FROZEN, ema_decay=0.9))
    assert training._average is not None
    names = training._average.tensors().keys()
    assert not names & auxiliary_names(training.model)
    assert names == {n for n, p in training.model.named_parameters() if p.requires_grad}
    state = training.capture()
    assert {f"average/{name}" for name in names} <= state.tensors.keys()
    shared = training_of(config_of(SHARED, ema_decay=0.9))
    assert shared._average is not None
    found = [name for name in shared._average.tensors() if name.endswith("value")]
    assert len(found) == 1


@pytest.mark.parametrize("train", ["all", "probe"])
def test_what_is_averaged_resumes_to_the_same_bits(train: Any) -> None:
    config = config_of(FROZEN, ema_decay=0.7, train=train, mixup=0.3)
    through = training_of(config)
    list(through.epochs())
    first = training_of(config)
    next(first.epochs())
    second = training_of(config)
    second.restore(from_bytes(to_bytes(first.capture())))
    list(second.epochs())
    assert same_bits(through.capture().tensors, second.capture().tensors)
    for one in (through, second):
        one.settle()
    assert same_bits(held(through), held(second))
    with pytest.raises(ValueError, match=r"recipe.ema_decay is 0.7 in the state"):
        training_of(replace(config, recipe=replace(config.recipe, ema_decay=None))).restore(
            through.capture()
        )


def test_what_is_exported_is_averaged_and_a_target_to_go_on_from(tmp_path: Path) -> None:
    """Further fine-tuning after a fuse: of the export all is taken but its head."""
    training = training_of(config_of(SHARED, ema_decay=0.7))
    next(training.epochs())
    state = training.capture()
    trained = Trained(training.config, state, {"audio": block_weights()})
    export = export_model(trained, digits(), Identity("trial", "arm"))
    training.settle()
    fused = fuse_pathway(training.model).state_dict()
    assert same_bits(export.tensors, dict(fused))
    (tmp_path / "model.safetensors").write_bytes(export.files()["model.safetensors"])
    text = (
        "name: further\ndata: {source: digits, limit: 90}\n"
        "model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}\n"
        f"target: {{weights: {tmp_path / 'model.safetensors'}}}\n"
        "auxiliaries: {audio: {pretrain: {data: {source: tones}}}}\n"
        "pathway: {auxiliary: audio}\n"
        "training: {epochs: 1, batch_size: 32}\n"
    )
    further = parse_experiment(text, "file")
    assert further.target is not None
    start = read_weights(further, "target", further.target)[0]
    again = Training(
        further.training_config(), digits(), {"audio": block_weights(9)}, target_weights=start
    )
    assert {name for name in fused if name not in start.tensors} == {"head.weight", "head.bias"}
    for name, weight in start.tensors.items():
        borrowing = f"{name.removesuffix('.weight')}.parametrizations.weight.original"
        borrows = name in start.blocks and name.endswith(".weight")
        own = again.model.get_parameter(borrowing if borrows else name)
        assert torch.equal(own, weight)
        assert torch.equal(own, fused[name])
    assert next(again.epochs()).metrics["train/loss"] > 0


def probed(**recipe: Any) -> TrainingConfig:
    return config_of(FROZEN, train="probe", **recipe)


def test_a_probe_trains_scales_and_head_alone() -> None:
    training = training_of(probed())
    before = held(training)
    names = {n for n, p in training.model.named_parameters() if p.requires_grad}
    assert names == scale_names(training.model) | {"head.weight", "head.bias"}
    grouped = sum(len(group["params"]) for group in training._optimizer.param_groups)
    assert grouped == len(names)
    list(training.epochs())
    after = held(training)
    assert {name for name in after if not torch.equal(before[name], after[name])} == names
    state = training.capture()
    assert {n.partition("/")[2] for n in state.tensors if n.startswith("model/")} == names
    fuse_pathway(training.model)
    plain = build_model(MODEL, digits().info, seed=1)
    plain.load_state_dict(training.model.state_dict(), strict=True)


def test_the_baseline_of_a_probe_is_a_linear_probe() -> None:
    config = config_of(train="probe")
    training = training_of(replace(config, model=replace(MODEL, drop_path=0.5)))
    before = held(training)
    reports = list(training.epochs())
    after = held(training)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"]


def test_a_state_of_a_probe_knows_what_it_stands_on() -> None:
    config = config_of(train="probe")
    one, other = (
        Training(config, digits(), {}, target_weights=block_weights(seed)) for seed in (1, 2)
    )
    next(one.epochs())
    with pytest.raises(ValueError, match=r"digests\.frozen_auxiliaries"):
        other.restore(one.capture())


def test_each_repeat_is_augmented_anew_and_counts_its_part() -> None:
    data = load(replace(DATA, augment="light"))
    pieces = [torch.tensor([3, 1, 4]), torch.tensor([1])]
    seen = list(data.train.stream(pieces, epoch=2, seed=5, views=2))
    assert [len(batch) for batch, _ in seen] == [6, 2]
    first, labels = seen[0]
    assert torch.equal(labels[:3], labels[3:])
    assert not torch.equal(first[:3], first[3:])
    assert torch.equal(first[[1, 4]], seen[1][0])  # whatever else is in the batch
    plain = next(data.train.stream(pieces, epoch=2, seed=5))[0]
    assert torch.equal(plain, next(data.train.stream(pieces, epoch=2, seed=5, views=1))[0])
    light = replace(config_of(), data=replace(DATA, augment="light"))
    config = replace(light, recipe=replace(light.recipe, repeats=2))
    parts = replace(light, recipe=replace(config.recipe, accumulate=3))
    losses = [next(training_of(one).epochs()).metrics["train/loss"] for one in (config, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_clips_are_cut_for_all_frames_alike() -> None:
    info = load(DataConfig("clips")).info
    mix = build_mix(Recipe(cutmix=1.0), info)
    assert mix is not None
    clips = torch.arange(4.0)[:, None, None, None, None].expand(4, *info.shape).clone()
    mixed, targets = mix(clips, torch.tensor([0, 1, 0, 1]))
    assert mixed.shape == clips.shape
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
    assert (float(mixed[0].amax()), float(mixed[0].amin())) == (3, 0)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ("recipe", "pathway", "told"),
    [
        ({"repeats": 2}, None, r"training\.repeats: 2 needs data\.augment"),
        ({"train": "probe"}, Pathway(), r"pathway\.trainable: must be false with training\.train"),
        ({"train": "head"}, None, "train: all or probe, is 'head'"),
        ({"ema_decay": 1.0}, None, "ema_decay: must lie between 0 and 1, is 1.0"),
        ({"betas": (0.9, 1.0)}, None, r"betas: two numbers in \[0, 1\), are \[0.9, 1.0\]"),
        ({"mixup_probability": 2.0}, None, "mixup_probability: must lie in"),
        ({"repeats": 0}, None, "repeats: must be 1 or more, is 0"),
    ],
)
def test_recipes_that_ask_in_vain(recipe: Any, pathway: Pathway | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config_of(pathway, **recipe)

"""The pure parts of a training: recipe, order and split of samples, groups and rates."""

import json
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from m2pt.data.order import permutation
from m2pt.models.build import build_model
from m2pt.pathway.config import Coverage, Pathway, Scale
from m2pt.pathway.reparam import attach_pathway, auxiliary_names, scale_names
from m2pt.training import metrics
from m2pt.training.batches import (
    global_batches,
    micro_batches,
    order_seed,
    seed_words,
    share,
)
from m2pt.training.mixing import build_mix
from m2pt.training.optim import build_optimizer, parameter_groups, rate_factor, set_rates
from m2pt.training.recipe import Numerics, Precision, Recipe, TrainingConfig
from m2pt.training.report import EpochReport
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import State, from_bytes, to_bytes
from m2pt.training.world import World
from tests.numerics.training_setup import MODEL, block_weights, config_of, digits

COUNTS = st.integers(1, 9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 65),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("min_learning_rate", 0.1),
        ("warmup_epochs", 7.0),
        ("layer_decay", 0.0),
        ("label_smoothing", 1.0),
        ("clip_grad", 0.0),
        ("weight_decay", -0.1),
        ("auxiliary_learning_rate_factor", float("inf")),
        ("scale_learning_rate", -1.0),
        ("mixup", -1.0),
        ("cutmix", -1.0),
    ],
)
def test_impossible_recipes_name_the_field_and_the_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: .*{value}"):
        Recipe(**{field: value})


def test_other_impossible_values() -> None:
    with pytest.raises(ValueError, match="precision: must be fp32, bf16 or fp64, is 'fp16'"):
        Numerics(precision=cast(Precision, "fp16"))
    with pytest.raises(ValueError, match="seed: must be 0 or more, is -1"):
        TrainingConfig(MODEL, config_of().data, seed=-1)
    with pytest.raises(ValueError, match=r"rank: must lie in \[0, size = 2\), is 2"):
        World(2, 2)


def test_reading_recipes_costs_no_torch() -> None:
    code = "import sys, m2pt.training.recipe as _; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(samples=st.integers(1, 60), batch_size=COUNTS, seed=st.integers(0, 2**40), epoch=COUNTS)
def test_an_epoch_sees_every_sample_once_in_its_own_order(
    samples: int, batch_size: int, seed: int, epoch: int
) -> None:
    def order(epoch: int) -> list[int]:
        drawn = permutation(samples, order_seed(seed, epoch))
        batches = global_batches(drawn, batch_size)
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        return torch.cat(batches).tolist()

    assert sorted(order(epoch)) == list(range(samples))
    assert order(epoch) == order(epoch)
    if samples > 20:
        assert order(epoch) != order(epoch + 1)


def test_no_two_purposes_share_a_seed() -> None:
    assert seed_words("order", 1, 2) != seed_words("training", 1, 2)
    assert seed_words("training", 1, 2, 0) != seed_words("training", 1, 2, 1)


@given(count=st.integers(1, 70), size=COUNTS, accumulate=COUNTS)
def test_a_split_batch_weighs_every_sample_alike(count: int, size: int, accumulate: int) -> None:
    batch = torch.randperm(count)
    seen: dict[int, float] = {}
    for rank in range(size):
        pieces = micro_batches(batch, rank=rank, size=size, accumulate=accumulate)
        assert 1 <= len(pieces) <= accumulate
        assert all(len(indices) for indices, _ in pieces)
        for indices, weight in pieces:
            for index in indices.tolist():
                seen[index] = seen.get(index, 0.0) + weight / size
    assert seen == pytest.approx(dict.fromkeys(range(count), 1 / count))
    parts = [share(batch, part, size) for part in range(size)]
    assert torch.equal(torch.cat(parts), batch)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(total=st.integers(1, 200), warm=st.floats(0, 1), floor=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_its_floor(
    total: int, warm: float, floor: float
) -> None:
    warmup = int(total * warm)
    rates = [
        rate_factor(step, total_steps=total, warmup_steps=warmup, floor=floor)
        for step in range(total + 1)
    ]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) <= 1.0
    assert rates[warmup] == (1.0 if warmup < total else pytest.approx(1.0))
    if warmup < total:
        assert rates[total] == pytest.approx(floor)


def _model(pathway: Pathway) -> torch.nn.Module:
    model = build_model(MODEL, digits().info, seed=0)
    return attach_pathway(model, {"audio": block_weights()}, pathway)


RECIPE = replace(
    config_of().recipe,
    learning_rate=1.0,
    layer_decay=0.5,
    scale_learning_rate=3.0,
    auxiliary_learning_rate_factor=0.1,
    weight_decay=0.2,
)


def test_every_trained_parameter_is_in_the_group_it_belongs_to() -> None:
    model = _model(Pathway())
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: g for g in parameter_groups(model, RECIPE) for p in g["params"]}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    auxiliary, scale = auxiliary_names(model), scale_names(model)
    assert auxiliary
    assert scale
    for name, group in found.items():
        parameter = model.get_parameter(name)
        if name in scale:
            assert (group["role"], group["peak"], group["weight_decay"]) == ("scale", 3.0, 0.0)
            continue
        decays = parameter.ndim == 2 or (parameter.ndim > 2 and name != "pos_embed")
        assert group["weight_decay"] == (0.2 if decays else 0.0), name
        factor = 0.1 if name in auxiliary else 1.0
        assert group["role"] == ("auxiliary" if name in auxiliary else "target")
        assert group["peak"] == pytest.approx(factor * _layer_rate(name)), name


@pytest.mark.parametrize(
    ("auxiliaries", "wanted"),
    [
        (("audio",), {"lambda/0.qkv", "lambda/1.qkv"}),
        (
            ("audio", "video"),
            {f"lambda/{name}/{block}.qkv" for name in ("audio", "video") for block in (0, 1)},
        ),
    ],
)
def test_scales_are_named_by_auxiliary_only_where_there_are_several(
    auxiliaries: tuple[str, ...], wanted: set[str]
) -> None:
    model = build_model(MODEL, digits().info, seed=0)
    assert metrics.mean_scales(model) == {}
    weights = {name: block_weights() for name in auxiliaries}
    attach_pathway(model, weights, Pathway(coverage=Coverage(linears=("qkv",))))
    assert set(metrics.mean_scales(model)) == wanted


def _layer_rate(name: str) -> float:
    """Two blocks: the head learns at 1, the last block at 1/2, the first at 1/4, tokens at 1/8."""
    if name.startswith("blocks."):
        return {"0": 0.25, "1": 0.5}[name.split(".")[1]]
    return 1.0 if name.startswith(("head", "fc_norm", "norm")) else 0.125


def test_layer_decay_and_no_decay_are_the_papers() -> None:
    """Block i of 12 learns at 0.65^(12-i), what comes before the blocks at 0.65^13, the head at 1;
    vectors and tokens do not decay (sections 4.1 and 4.6 of the reference)."""
    deep = replace(MODEL, width=8, depth=12, class_token=True)
    model = build_model(deep, digits().info, seed=0)
    names = {id(p): name for name, p in model.named_parameters()}
    recipe = Recipe(epochs=100, learning_rate=1.0, layer_decay=0.65)
    for group in parameter_groups(model, recipe):
        for parameter in group["params"]:
            name = names[id(parameter)]
            depth = 13 if name.startswith(("patch_embed", "pos_embed", "cls_token")) else 0
            if name.startswith("blocks."):
                depth = 12 - int(name.split(".")[1])
            assert group["peak"] == pytest.approx(0.65**depth), name
            decays = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
            assert group["weight_decay"] == (0.05 if decays else 0.0), name


def test_frozen_auxiliaries_and_fixed_scales_are_in_no_group() -> None:
    model = _model(Pathway(trainable=False, scale=Scale(learned=False)))
    assert {group["role"] for group in parameter_groups(model, RECIPE)} == {"target"}


def test_rates_scale_every_group_and_stop_held_scales_exactly() -> None:
    optimizer = build_optimizer(_model(Pathway()), RECIPE)
    set_rates(optimizer, 0.5, resting=set())
    assert all(group["lr"] == 0.5 * group["peak"] for group in optimizer.param_groups)
    set_rates(optimizer, 0.5, resting={"scale"})
    assert [g["lr"] for g in optimizer.param_groups if g["role"] == "scale"] == [0.0]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_samples_keep_their_number_and_targets_add_up(
    count: int, mixup: float, cutmix: float
) -> None:
    mix = build_mix(Recipe(mixup=mixup, cutmix=cutmix, label_smoothing=0.1), digits().info)
    assert mix is not None
    samples, labels = digits().train.batch(torch.arange(count))
    mixed, targets = mix(samples.clone(), labels)
    assert mixed.shape == samples.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    if count % 2:
        middle = count // 2
        torch.testing.assert_close(mixed[middle], samples[middle])
        assert targets[middle].argmax() == labels[middle]


@given(
    tensors=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1),
        st.lists(st.floats(width=32, allow_nan=False), max_size=4),
    ),
    epoch=st.integers(0, 10**6),
)
def test_a_state_survives_as_bytes(tensors: dict[str, list[float]], epoch: int) -> None:
    held = {name: torch.tensor(values) for name, values in tensors.items()}
    state = State(held, {"format": 1, "epoch": epoch, "nested": {"λ": [None, 0.1, "a"]}})
    data = to_bytes(state)
    back = from_bytes(data)
    assert back.meta == state.meta == json.loads(json.dumps(state.meta))
    assert back.tensors.keys() == held.keys()
    assert all(torch.equal(back.tensors[name], held[name]) for name in held)
    assert to_bytes(back) == data


class Counting:
    """Three epochs of nothing, to see what `drive` does with them."""

    def __init__(self) -> None:
        self.epoch, self.closed = 0, False

    def epochs(self) -> Generator[EpochReport, None, None]:
        try:
            while self.epoch < 3:
                self.epoch += 1
                yield EpochReport(self.epoch, 3, {}, {}, {})
        finally:
            self.closed = True

    def capture(self) -> State:
        none: dict[str, Tensor] = {}
        return State(none, {"format": 1, "epoch": self.epoch})

    def restore(self, state: State) -> None:
        epoch: Any = state.meta["epoch"]
        self.epoch = epoch


@pytest.mark.parametrize(
    ("stop_after", "outcome", "epochs"),
    [(None, "finished", 3), (1, "stopped", 1), (3, "finished", 3)],
)
def test_drive_stops_when_asked_and_closes_the_generator(
    stop_after: int | None, outcome: str, epochs: int
) -> None:
    training, session = Counting(), MemorySession(stop_after=stop_after)
    assert drive(training, session) == outcome
    assert [report.epoch for report in session.reports] == list(range(1, epochs + 1))
    assert training.closed
    resumed = Counting()
    assert drive(resumed, MemorySession(state=session.state)) == "finished"
    assert resumed.epoch == 3

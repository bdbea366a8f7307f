"""What a pathway asks of the loop: merging, late training, clamps, states, the zero arm."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from m2pt.models.build import build_model
from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
from m2pt.pathway.reparam import auxiliary_names, fuse_pathway, scales
from m2pt.training.loop import Training
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import State
from m2pt.weights.blocks import block_weights
from tests.numerics.training_setup import MODEL, config_of, digits, same_bits, training_of

pytestmark = pytest.mark.slow
FAST_SCALE = {"scale_learning_rate": 0.05}


def with_biases(seed: int = 7, depth: int = 2) -> dict[str, Tensor]:
    """Block weights, biases included, that another model would have."""
    model = build_model(replace(MODEL, depth=depth), digits().info, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return block_weights(model)


def trained(pathway: Pathway | None, **recipe: Any) -> Training:
    """A training that has run to its end."""
    auxiliaries = {"audio": with_biases()} if pathway else {}
    training = Training(config_of(pathway, **recipe), digits(), auxiliaries)
    drive(training, MemorySession())
    return training


EVERYTHING = Pathway(
    coverage=Coverage(linears=("q", "v", "fc2")),
    mapping=(1, 0),
    scale=Scale(0.1, split_qkv=True, relative=True, clamp=0.3, merge_every=1),
    trainable="rank:2",
    keep="bf16",
    prepare="rank:4",
    bias="added",
)


@pytest.mark.parametrize(
    "pathway",
    [
        EVERYTHING,
        Pathway(scale=Scale(merge_every=2, granularity="block")),
        Pathway(trainable="from:0.4", bias="added"),
        Pathway(scale=Scale((0.0, 0.2), envelope=Envelope("hold", 0.5)), prepare="frobenius"),
    ],
    ids=["everything", "merged", "later", "spread and held"],
)
def test_resumed_at_any_epoch_it_is_the_same_bit_for_bit(pathway: Pathway) -> None:
    states: list[State] = []

    class Keeping(MemorySession):
        def report(self, report: Any, capture: Any) -> bool:
            states.append(capture())
            return super().report(report, capture)

    auxiliaries = {"audio": with_biases()}
    config = config_of(pathway, epochs=3, **FAST_SCALE)
    whole = Training(config, digits(), auxiliaries)
    drive(whole, Keeping())
    for state in states[:-1]:
        again = Training(config, digits(), auxiliaries)
        drive(again, MemorySession(state=state))
        assert same_bits(again.model.state_dict(), whole.model.state_dict())
    frozen = [name for name in states[-1].tensors if ".auxiliary_" in name]
    assert bool(frozen) == (pathway.training.kind == "trained")


def test_what_is_merged_stays_and_lambda_starts_again() -> None:
    pathway = Pathway(trainable=False, scale=Scale(merge_every=1))
    once = trained(pathway, epochs=1, **FAST_SCALE)
    config = config_of(pathway, epochs=2, **FAST_SCALE)
    training = Training(config, digits(), {"audio": with_biases()})
    epochs = training.epochs()
    next(epochs)
    before = training.model(torch.ones(1, 1, 8, 8))
    values = {key: value.clone() for key, value in scales(training.model).items()}
    assert all(value.abs().min() > 0 for value in values.values())
    training._merge_where_due()
    assert all(not value.any() for value in scales(training.model).values())
    assert torch.allclose(training.model(torch.ones(1, 1, 8, 8)), before, rtol=1e-4, atol=1e-5)
    assert any(value.any() for value in scales(once.model).values())  # the last is never merged


def test_a_weight_that_is_trained_later_rests_until_then() -> None:
    config = config_of(Pathway(trainable="from:0.5", scale=Scale(0.1)), epochs=2)
    training = training_of(config)
    start = {
        name: parameter.detach().clone()
        for name, parameter in training.model.named_parameters()
        if name in auxiliary_names(training.model)
    }
    epochs = training.epochs()
    next(epochs)
    now = dict(training.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in start.items())
    next(epochs)
    assert not any(torch.equal(now[name], value) for name, value in start.items())


def test_a_clamped_lambda_stays_within() -> None:
    free = trained(Pathway(), **FAST_SCALE)
    held = trained(Pathway(scale=Scale(clamp=0.02)), **FAST_SCALE)
    assert max(value.abs().max() for value in scales(free.model).values()) > 0.02
    assert max(value.abs().max() for value in scales(held.model).values()) <= 0.02


@pytest.mark.parametrize(
    "pathway",
    [
        Pathway(),
        Pathway(bias="added", mapping="reversed", prepare="frobenius"),
        Pathway(coverage=Coverage("first:1", ("k", "fc1")), scale=Scale(granularity="global")),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_zero_arm_is_the_baseline_bit_for_bit(pathway: Pathway, precision: Any) -> None:
    """λ held at 0, its auxiliary frozen: the check that the pathway does nothing by itself."""
    fixed = replace(pathway.scale, init=0.0, learned=False)
    zero = config_of(replace(pathway, scale=fixed, trainable=False))
    numerics = replace(zero.numerics, precision=precision)
    auxiliaries = {"audio": with_biases()}
    runs = [
        Training(replace(config_of(), numerics=numerics), digits(), {}),
        Training(replace(zero, numerics=numerics), digits(), auxiliaries),
    ]
    reports = []
    for training in runs:
        session = MemorySession()
        drive(training, session)
        reports.append([report.metrics for report in session.reports])
    for plain, other in zip(*reports, strict=True):
        assert {name: other[name] for name in plain} == plain
    assert same_bits(fuse_pathway(runs[1].model).state_dict(), runs[0].model.state_dict())


def test_an_auxiliary_of_another_depth_is_stretched() -> None:
    config = config_of(Pathway(mapping="stretched", scale=Scale(0.1)))
    drive(Training(config, digits(), {"audio": with_biases(depth=5)}), MemorySession())
    with pytest.raises(ValueError, match="has 5 blocks and the target 2"):
        Training(config_of(Pathway()), digits(), {"audio": with_biases(depth=5)})

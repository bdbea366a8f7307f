"""Training through a pathway: who gets a gradient, who moves, and who must not."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from m2pt.pathway.config import Envelope, Pathway, Scale
from m2pt.pathway.coverage import layer_name, mapping, select
from m2pt.pathway.reparam import (
    attach_pathway,
    auxiliary_names,
    effective_scales,
    frozen_auxiliary_names,
    scale_names,
    scales,
    set_progress,
)
from tests.numerics.pathway_setup import auxiliaries_for, cases, images, randomise, tiny

inits = st.floats(-1.0, 1.0)
few = settings(max_examples=20, deadline=None)
LABELS = torch.tensor([1, 3])


def loss_of(model: nn.Module) -> Tensor:
    inputs = images().to(next(model.parameters()).dtype)
    return functional.cross_entropy(model(inputs), LABELS)


def backward(model: nn.Module) -> None:
    torch.autograd.backward(loss_of(model))


def train(model: nn.Module, steps: int = 3) -> None:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.01, weight_decay=0.1)
    for step in range(steps):
        set_progress(model, step / steps)
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


@pytest.mark.slow
@few
@given(cases(inits))
def test_the_gradients_are_those_that_the_plain_weights_imply(case: Any) -> None:
    """dW = G, dW' = λG and dλ = <G, W'>, with G the plain model's gradient at W + Σ λW'."""
    depth, count, pathway = case
    target, auxiliaries = tiny(0, depth).double(), auxiliaries_for(depth, count)
    plain, partners = copy.deepcopy(target), mapping(pathway.mapping, depth)
    attach_pathway(target, auxiliaries, pathway)
    randomise(scales(target))
    set_progress(target, 0.7)
    factors, covered = effective_scales(target), select(pathway.coverage, depth)
    with torch.no_grad():
        for block, linear in covered:
            layer = layer_name(block, linear)
            plain.get_submodule(layer).weight.copy_(target.get_submodule(layer).weight)
    backward(plain)
    backward(target)
    wanted: dict[int, Tensor] = {}
    values = scales(target)
    for block, linear in covered:
        layer = layer_name(block, linear)
        own = target.get_submodule(f"{layer}.parametrizations.weight")
        grad = plain.get_submodule(layer).weight.grad
        assert torch.allclose(own.original.grad, grad, rtol=1e-9, atol=1e-12)
        for name, auxiliary in auxiliaries.items():
            value, factor = values[name, layer], factors[name, layer]
            w = (
                auxiliary.get_submodule(layer_name(partners[block], linear))
                .weight.detach()
                .double()
            )
            bands = len(value)
            borrowed = own.get_parameter(f"0.auxiliary_{name}")
            if pathway.trainable:
                rows = factor.repeat_interleave(len(grad) // bands)[:, None]
                assert torch.allclose(borrowed.grad, rows * grad, rtol=1e-9, atol=1e-12)
            else:
                assert borrowed.grad is None
            envelope = (factor / value)[:1]
            dot = envelope * (grad * w).reshape(bands, -1).sum(dim=1)
            wanted[id(value)] = wanted.get(id(value), torch.zeros_like(dot)) + dot
    for value in values.values():
        if pathway.scale.learned:
            assert value.grad is not None
            assert torch.allclose(value.grad, wanted[id(value)], rtol=1e-8, atol=1e-10)
        else:
            assert value.grad is None


@few
@given(cases(st.just(0.0)))
def test_every_learned_lambda_gets_a_gradient_also_at_0(case: Any) -> None:
    depth, count, pathway = case
    target = attach_pathway(tiny(0, depth), auxiliaries_for(depth, count), pathway)
    anneals = pathway.scale.envelope.kind == "anneal"
    set_progress(target, 0.0 if anneals else 1.0)
    backward(target)
    for value in scales(target).values():
        assert (value.grad is not None) == pathway.scale.learned
        assert value.grad is None or (value.grad != 0).all()


@pytest.mark.slow
@few
@given(cases(inits))
def test_what_is_frozen_or_fixed_stays_bit_for_bit_and_the_rest_moves(case: Any) -> None:
    depth, count, pathway = case
    auxiliaries = auxiliaries_for(depth, count)
    originals = copy.deepcopy(auxiliaries)
    target = attach_pathway(tiny(0, depth), auxiliaries, pathway)
    randomise(scales(target))
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    frozen, fixed = frozen_auxiliary_names(target), scale_names(target)
    assert frozen == (set() if pathway.trainable else auxiliary_names(target))
    still = frozen | (set() if pathway.scale.learned else fixed)
    train(target)
    for name, parameter in target.named_parameters():
        assert parameter.requires_grad == (name not in still)
        assert torch.equal(parameter, before[name]) == (name in still), name
    for name, auxiliary in auxiliaries.items():  # the auxiliary's own module: as it was
        for key, parameter in auxiliary.named_parameters():
            assert torch.equal(parameter, originals[name].get_parameter(key))
            assert parameter.requires_grad
            assert parameter.grad is None


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("as_mapping", [True, False])
def test_nothing_of_an_auxiliary_is_aliased(trainable: bool, as_mapping: bool) -> None:
    auxiliary = tiny(1)
    given_ = dict(auxiliary.named_parameters()) if as_mapping else auxiliary
    target = attach_pathway(tiny(0), {"one": given_, "two": given_}, Pathway(trainable=trainable))
    storages = [p.untyped_storage().data_ptr() for p in target.parameters()]
    assert len(set(storages)) == len(storages)
    assert not set(storages) & {p.untyped_storage().data_ptr() for p in auxiliary.parameters()}
    before = target(images())
    with torch.no_grad():
        for parameter in auxiliary.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(target(images()), before)


def test_a_target_can_be_its_own_auxiliary() -> None:
    target = tiny(0)
    plain = copy.deepcopy(target)
    attach_pathway(target, {"self": target}, Pathway(scale=Scale(1.0)))
    computed, own = target.blocks[1].mlp.fc1.weight, plain.blocks[1].mlp.fc1.weight
    assert torch.equal(computed, own + own)


def test_an_optimiser_made_before_attaching_goes_on_with_the_targets_own_weights() -> None:
    target = tiny(0)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    attach_pathway(target, {"a": tiny(1)}, Pathway(scale=Scale(0.2)))
    own = target.blocks[0].mlp.fc1.parametrizations.weight.original
    before = own.detach().clone()
    backward(target)
    optimizer.step()
    assert not torch.equal(own, before)


@pytest.mark.parametrize("kind", ["linear", "cosine", "anneal"])
def test_the_envelope_follows_progress_and_leaves_the_value_alone(kind: Any) -> None:
    scale = Scale(init=0.5, envelope=Envelope(kind, until=0.5))
    target = attach_pathway(tiny(0), auxiliaries_for(3, 2), Pathway(scale=scale))
    plain, start = tiny(0)(images()), target(images())
    assert torch.equal(start, plain) == (kind != "anneal")
    (buffer,) = target.buffers()  # one for all, and a compiled model must see it change
    seen = []
    for t in (0.0, 0.25, 0.5, 1.0):
        set_progress(target, t)
        assert all(value.item() == 0.5 for value in scales(target).values())
        (at_t,) = {value.item() for value in effective_scales(target).values()}
        seen.append(round(at_t, 6))
    assert [found is buffer for found in target.buffers()] == [True]
    assert seen == ([0.5, 0.25, 0.0, 0.0] if kind == "anneal" else [0.0, 0.25, 0.5, 0.5])
    assert torch.equal(target(images()), plain) == (kind == "anneal")
    with pytest.raises(ValueError, match=r"progress of training in \[0, 1\]"):
        set_progress(target, 1.5)

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
from m2pt.pathway.reparam import (
    attach_pathway,
    auxiliary_names,
    computed_once,
    effective_scales,
    frozen_auxiliary_names,
    scale_names,
    scales,
    set_progress,
)
from m2pt.pathway.weight import Joined, joined
from tests.numerics.pathway_setup import (
    Case,
    auxiliaries_for,
    cases,
    images,
    randomise,
    randomise_changes,
    samples_of,
    tiny,
)

inits = st.floats(-1.0, 1.0)
few = settings(max_examples=60, deadline=None)
LABELS = torch.tensor([1, 3])


def loss_of(model: nn.Module, case: Case | None = None) -> Tensor:
    inputs = images() if case is None else samples_of(case.modality)
    output = model(inputs.to(next(model.parameters()).dtype))
    return functional.cross_entropy(output, LABELS)


def backward(model: nn.Module, case: Case | None = None) -> None:
    torch.autograd.backward(loss_of(model, case))


def train(model: nn.Module, case: Case | None = None, steps: int = 3) -> None:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.01, weight_decay=0.1)
    for step in range(steps):
        set_progress(model, step / steps)
        optimizer.zero_grad()
        backward(model, case)
        optimizer.step()


@pytest.mark.slow
@few
@given(cases(inits))
def test_the_gradients_are_those_that_the_plain_weights_imply(case: Case) -> None:
    """dW = G, dW' = λG and dλ = <G, W'> and what follows from them for low ranks and biases, with
    G the plain model's gradient at W + Σ λW': compared with autograd over the plain formula."""
    target, plain = case.target().double(), case.target().double()
    attach_pathway(target, case.auxiliaries(), case.pathway)
    randomise(scales(target))
    randomise_changes(target)
    set_progress(target, 0.7)
    parts = list(joined(target))
    with torch.no_grad():
        for one in parts:
            getattr(plain.get_submodule(one.part.layer), one.name).copy_(
                getattr(one.linear, one.name)
            )
    backward(plain, case)
    backward(target, case)
    found = [p for p in target.parameters() if p.requires_grad and p.grad is not None]
    total = torch.zeros((), dtype=torch.float64)
    for one in parts:
        grad = getattr(plain.get_submodule(one.part.layer), one.name).grad
        total = total + (grad * written_out(one, case)).sum()
    touched = {id(p): p for one in parts for p in (one.own, *one.part.parameters())}
    leaves = [p for p in touched.values() if p.requires_grad]
    for leaf, wanted in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad, wanted, rtol=1e-8, atol=1e-11)
    assert {id(leaf) for leaf in leaves} <= {id(p) for p in found}


def written_out(one: Joined, case: Case) -> Tensor:
    """W + Σ λW' of one tensor, as a formula of its parameters."""
    total: Tensor = one.own
    covered = [name in case.pathway.coverage.linears for name in ("q", "k", "v")]
    partial = one.part.layer.endswith("qkv") and any(covered)
    for name in one.part.names:
        theirs, *change = (parameter.double() for parameter in one.part.borrowed(name))
        if change:
            theirs = theirs + change[0] @ change[1]
        value = one.part.scale(name)
        scale = value.envelope.factor * value.value
        if partial:
            numbers = iter(scale) if case.pathway.scale.split_qkv else iter(scale.expand(3))
            scale = torch.stack([next(numbers) if on else scale.new_zeros(()) for on in covered])
        by_row = scale.repeat_interleave(len(total) // len(scale))
        total = total + (by_row[:, None] if total.ndim == 2 else by_row) * theirs
    return total


@pytest.mark.slow
@few
@given(cases(st.just(0.0)))
def test_every_learned_lambda_gets_a_gradient_also_at_0(case: Case) -> None:
    target = attach_pathway(case.target(), case.auxiliaries(), case.pathway)
    anneals = case.pathway.scale.envelope.kind == "anneal"
    set_progress(target, 0.0 if anneals else 1.0)
    backward(target, case)
    for value in scales(target).values():
        assert (value.grad is not None) == case.pathway.scale.learned
        assert value.grad is None or (value.grad != 0).all()


@pytest.mark.slow
@few
@given(cases(inits))
def test_what_is_frozen_or_fixed_stays_bit_for_bit_and_the_rest_moves(case: Case) -> None:
    auxiliaries = case.auxiliaries()
    originals = copy.deepcopy(auxiliaries)
    target = attach_pathway(case.target(), auxiliaries, case.pathway)
    randomise(scales(target))
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    frozen, fixed = frozen_auxiliary_names(target), scale_names(target)
    borrowed = {name for name in auxiliary_names(target) if ".auxiliary_" in name}
    trained = case.pathway.training.kind == "trained"
    assert frozen == (set() if trained else borrowed)
    still = frozen | (set() if case.pathway.scale.learned else fixed)
    train(target, case)
    for name, parameter in target.named_parameters():
        assert parameter.requires_grad == (name not in still)
        if name in still:
            assert torch.equal(parameter, before[name]), name
        elif trained and ".auxiliary_" not in name:
            assert not torch.equal(parameter, before[name]), name
    for name, auxiliary in auxiliaries.items():  # the auxiliary's own module: as it was
        for key, parameter in auxiliary.named_parameters():
            assert torch.equal(parameter, originals[name].get_parameter(key))
            assert parameter.requires_grad
            assert parameter.grad is None


@pytest.mark.slow
@few
@given(cases(inits))
def test_computed_once_for_several_batches_the_gradients_are_the_same(case: Case) -> None:
    target = attach_pathway(case.target().double(), case.auxiliaries(), case.pathway)
    randomise(scales(target))
    randomise_changes(target)
    set_progress(target, 0.6)
    for _ in range(3):
        backward(target, case)
    wanted = {name: p.grad for name, p in target.named_parameters()}
    target.zero_grad()
    with computed_once(target):
        for _ in range(3):
            backward(target, case)
    for name, parameter in target.named_parameters():
        found, before = parameter.grad, wanted[name]
        assert (found is None) == (before is None), name
        if found is not None and before is not None:
            assert torch.allclose(found, before, rtol=1e-9, atol=1e-12), name


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

"""Attaching and fusing, over coverages, mappings, kinds of λ and numbers of auxiliaries."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
from m2pt.pathway.coverage import LINEAR_PATHS, layer_name, mapping, select
from m2pt.pathway.reparam import (
    attach_pathway,
    auxiliary_names,
    clamp_scales,
    effective_scales,
    frozen_auxiliary_names,
    fuse_pathway,
    has_pathway,
    merge_and_reset,
    scale_names,
    scales,
    set_progress,
)
from m2pt.pathway.weight import joined
from tests.numerics.pathway_setup import (
    WIDTH,
    Case,
    auxiliaries_for,
    cases,
    expected_tensors,
    images,
    randomise,
    randomise_changes,
    samples_of,
    target_of,
    tiny,
)

inits = st.floats(-1.0, 1.0)
zeros = st.sampled_from([0.0, -0.0])
few = settings(max_examples=60, deadline=None)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.int32)


def snapshot(model: nn.Module) -> dict[str, tuple[type, list[tuple[str, int, Tensor]]]]:
    """Everything of a model that a refused attachment could have changed."""
    return {
        name: (
            type(module),
            [(key, id(p), p.detach().clone()) for key, p in module.named_parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    }


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        one[name][0] is other[name][0]
        and [entry[:2] for entry in one[name][1]] == [entry[:2] for entry in other[name][1]]
        and all(
            torch.equal(bits(a[2]), bits(b[2]))
            for a, b in zip(one[name][1], other[name][1], strict=True)
        )
        for name in one
    )


@pytest.mark.slow
@few
@given(cases(zeros), st.floats(0.0, 1.0))
def test_lambda_of_0_leaves_outputs_and_weights_bit_identical(case: Case, t: float) -> None:
    target, samples = case.target(), samples_of(case.modality)
    with torch.no_grad():
        target.blocks[0].mlp.fc1.weight[0] = -0.0
        target.blocks[0].attn.qkv.weight[::2, 1] = -0.0
        target.blocks[0].mlp.fc2.bias[1] = -0.0
    plain, before = copy.deepcopy(target), target(samples)
    attach_pathway(target, case.auxiliaries(), case.pathway)
    randomise_changes(target)
    set_progress(target, t)
    assert torch.equal(bits(target(samples)), bits(before))
    for block, linear in select(case.pathway.coverage, case.depth):
        layer = layer_name(block, linear)
        for kind in ("weight", "bias"):
            computed = getattr(target.get_submodule(layer), kind)
            assert torch.equal(bits(computed), bits(getattr(plain.get_submodule(layer), kind)))
    fused = fuse_pathway(target).state_dict()
    assert all(torch.equal(bits(fused[key]), bits(w)) for key, w in plain.state_dict().items())


@pytest.mark.slow
@few
@given(cases(inits), st.floats(0.0, 1.0))
def test_covered_tensors_are_the_formula_and_others_are_left_alone(case: Case, t: float) -> None:
    target, plain = case.target(), case.target()
    assert attach_pathway(target, case.auxiliaries(), case.pathway) is target
    randomise(scales(target))
    randomise_changes(target)
    set_progress(target, t)
    expected = expected_tensors(case, target)
    covered = select(case.pathway.coverage, case.depth)
    assert {layer for _, layer in scales(target)} == {layer_name(*place) for place in covered}
    assert len(scales(target)) == case.count * len(covered)
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            for kind in ("weight", "bias"):
                own = getattr(module, kind)
                wanted = expected.pop(f"{name}.{kind}", None if own is None else own.double())
                found = getattr(target.get_submodule(name), kind)
                assert (found is None) == (wanted is None)
                if found is not None and wanted is not None:
                    close = torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-4)
                    assert close, f"{name}.{kind}"
    assert not expected


@pytest.mark.slow
@few
@given(cases(inits), st.floats(0.0, 1.0))
def test_a_fused_model_is_the_plain_model_and_agrees_with_the_unfused(case: Case, t: float) -> None:
    target, plain = case.target(), target_of(case.modality, case.depth, seed=1)
    samples = samples_of(case.modality)
    keys = list(target.state_dict())
    own = dict(target.named_parameters())
    attach_pathway(target, case.auxiliaries(), case.pathway)
    randomise(scales(target))
    randomise_changes(target)
    set_progress(target, t)
    unfused = copy.deepcopy(target)
    merged = copy.deepcopy(target)
    assert fuse_pathway(target) is target
    assert list(target.state_dict()) == keys
    assert [*dict(target.named_parameters())] == [*own]
    assert all(own[name] is found for name, found in target.named_parameters())
    assert {type(m) for m in target.modules()} == {type(m) for m in plain.modules()}
    assert not has_pathway(target)
    plain.load_state_dict(target.state_dict(), strict=True)
    before, after = unfused(samples), plain(samples)
    assert (before - after).norm() <= 1e-5 * before.norm()
    assert torch.equal(after, target(samples))
    merge_and_reset(merged)
    assert all(not value.any() for value in scales(merged).values())
    assert torch.equal(merged(samples), after)


@pytest.mark.parametrize(
    ("scale", "starts"),
    [
        (Scale(0.5), [0.5, 0.5, 0.5]),
        (Scale((0.0, 1.0)), [0.0, 0.5, 1.0]),
        (Scale((1.0, 0.0, 0.5), granularity="block"), [1.0, 0.0, 0.5]),
        (Scale((0.0, 4.0, 0.0, 2.0)), [0.0, 2.0, 2.0]),
        (Scale(0.5, relative=True), [0.25, 0.25, 0.25]),
        (Scale(0.5, relative=True, granularity="global"), [0.25, 0.25, 0.25]),
        (Scale(0.5, relative=True, clamp=0.1), [0.1, 0.1, 0.1]),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_where_lambda_starts(scale: Scale, starts: list[float], split: bool) -> None:
    target, auxiliary = tiny(0, 3), tiny(0, 3)
    for layer in (layer_name(*place) for place in select(Coverage(), 3)):
        auxiliary.get_submodule(layer).weight.data.mul_(2.0)
    attach_pathway(target, {"a": auxiliary}, Pathway(scale=replace(scale, split_qkv=split)))
    for (_, layer), value in scales(target).items():
        wanted = starts[int(layer.split(".")[1])]
        assert torch.allclose(value, torch.full_like(value, wanted)), layer


def test_a_clamp_holds_and_lets_go_of_nothing_else() -> None:
    target = attach_pathway(tiny(0), {"a": tiny(1)}, Pathway(scale=Scale(0.1, clamp=0.2)))
    with torch.no_grad():
        for number, value in enumerate(scales(target).values()):
            value.fill_((-1) ** number * (5.0 if number % 3 else 0.05))
    clamp_scales(target)
    found = {round(value.item(), 6) for value in scales(target).values()}
    assert found == {0.05, -0.05, 0.2, -0.2}


def test_a_prepared_auxiliary_has_the_norm_or_the_rank_asked_for() -> None:
    for prepare in ("frobenius", "rank:2"):
        target = attach_pathway(tiny(0), {"a": tiny(1)}, Pathway(prepare=prepare))
        for one in joined(target):
            (theirs,) = one.part.borrowed("a")
            if prepare == "frobenius":
                assert torch.allclose(theirs.norm(), one.own.norm())
            else:
                assert torch.linalg.matrix_rank(theirs.double(), rtol=1e-5) == 2


def test_the_default_is_the_papers_setting() -> None:
    target = attach_pathway(tiny(0, 3), {"audio": tiny(1, 3)})
    values = scales(target)
    assert [layer for _, layer in values] == [
        f"blocks.{block}.{path}" for block in range(3) for path in LINEAR_PATHS.values()
    ]
    assert all(value.shape == (1,) and value.item() == 0.0 for value in values.values())
    assert len({id(value) for value in values.values()}) == 12
    assert frozen_auxiliary_names(target) == set()
    assert len(auxiliary_names(target)) == 12
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_modules_and_mappings_of_block_weights_are_the_same_auxiliary() -> None:
    module = tiny(1, 2)
    weights = module.state_dict()  # with biases, norms and a head, which are ignored
    targets = [
        attach_pathway(tiny(0, 2), {"a": a}, Pathway(scale=Scale(0.3))) for a in (module, weights)
    ]
    assert torch.equal(targets[0](images()), targets[1](images()))


def test_names_say_what_each_parameter_is() -> None:
    scale = Scale(granularity="block", learned=False, envelope=Envelope("linear"))
    target = attach_pathway(
        tiny(0, 2), auxiliaries_for(2, 2), Pathway(scale=scale, trainable=False)
    )
    names = dict(target.named_parameters())
    assert len(auxiliary_names(target)) == 2 * 8
    assert frozen_auxiliary_names(target) == auxiliary_names(target)
    assert len(scale_names(target)) == 2 * 2
    assert "blocks.0.attn.qkv.parametrizations.weight.0.scale_audio.value" in scale_names(target)
    added = auxiliary_names(target) | scale_names(target)
    assert not any(names[name].requires_grad for name in added)
    plain = {
        name.replace(".parametrizations.weight.original", ".weight")
        for name in names.keys() - added
    }
    assert plain == set(dict(tiny(0, 2).named_parameters()))
    assert set(target.state_dict()) >= set(names)
    assert not any("envelope" in name for name in target.state_dict())


@pytest.mark.parametrize(("granularity", "apart"), [("linear", 12), ("block", 3), ("global", 1)])
@pytest.mark.parametrize("split", [False, True])
def test_sharing_survives_deepcopy_and_a_state_dict(
    granularity: Any, apart: int, split: bool
) -> None:
    pathway = Pathway(scale=Scale(granularity=granularity, split_qkv=split))
    target = attach_pathway(tiny(0, 3), auxiliaries_for(3, 2), pathway)
    groups = 2 * (apart if granularity == "linear" or not split else 2 * apart)
    randomise(scales(target))
    twin = attach_pathway(tiny(5, 3), auxiliaries_for(3, 2), pathway)
    twin.load_state_dict(target.state_dict(), strict=True)
    for model in (target, copy.deepcopy(target), twin, copy.deepcopy(target).double()):
        assert len({id(value) for value in scales(model).values()}) == groups
        assert len(scale_names(model)) == groups
        wanted = scales(target)
        assert all(torch.equal(v.float(), wanted[k]) for k, v in scales(model).items())
    with torch.no_grad():
        scales(twin)["audio", "blocks.0.mlp.fc1"].fill_(9.0)
    others = [scales(twin)["audio", f"blocks.{b}.mlp.fc2"].item() for b in (0, 2)]
    assert [value == 9.0 for value in others] == [granularity != "linear", granularity == "global"]
    assert torch.equal(twin(images()), copy.deepcopy(twin)(images()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_auxiliaries_take_the_targets_dtype_and_fusing_computes_in_float32_at_least(
    dtype: torch.dtype,
) -> None:
    case = Case(2, 2, 3, Pathway(), "image")
    target, auxiliaries = case.target().to(dtype), case.auxiliaries()
    own = {one: weight.double() for one, weight in target.state_dict().items()}
    attach_pathway(target, auxiliaries)
    assert {parameter.dtype for parameter in target.parameters()} == {dtype}
    randomise(scales(target))
    rounded = {name: auxiliary.to(dtype) for name, auxiliary in auxiliaries.items()}
    wanted = {}
    for block, linear in select(Coverage(), 2):
        layer = layer_name(block, linear)
        wanted[layer] = own[f"{layer}.weight"] + sum(
            effective_scales(target)[name, layer].double()
            * auxiliary.get_submodule(layer).weight.double()
            for name, auxiliary in rounded.items()
        )
    fuse_pathway(target)
    for layer, weight in wanted.items():
        found = target.get_submodule(layer).weight
        assert found.dtype == dtype
        if dtype == torch.float64:
            assert torch.allclose(found, weight, rtol=1e-14, atol=1e-14)
        else:  # no more than the one rounding at the end, and that of float32 before it
            assert ((found.double() - weight).abs() <= 2**-8 * weight.abs() + 1e-6).all()


def test_fusing_leaves_copies_of_the_model_and_a_plain_model_alone() -> None:
    target = attach_pathway(tiny(0, 2), {"audio": tiny(1, 2)}, Pathway(scale=Scale(0.5)))
    keeps, later = copy.deepcopy(target), copy.deepcopy(target)
    before = target(images())
    fuse_pathway(target)
    assert has_pathway(keeps)
    assert torch.equal(keeps(images()), before)
    fused = fuse_pathway(later).state_dict()
    assert all(torch.equal(fused[key], weight) for key, weight in target.state_dict().items())
    again = fuse_pathway(target).state_dict()
    assert all(torch.equal(fused[key], weight) for key, weight in again.items())
    assert scales(target) == effective_scales(target) == {}
    set_progress(target, 0.5)


def test_after_fusing_another_pathway_can_be_attached() -> None:
    target = fuse_pathway(attach_pathway(tiny(0, 2), {"a": tiny(1, 2)}, Pathway(scale=Scale(0.5))))
    before = target(images())
    attach_pathway(target, {"b": tiny(2, 2)})
    assert torch.equal(target(images()), before)


def _without(key: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = tiny(1).state_dict()
    del weights[key]
    return weights


def _with(key: str, value: float) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = tiny(1).state_dict()
    weights[key][1, 2] = value
    return weights


def _narrow_fc2() -> Any:
    model = tiny(1)
    model.blocks[2].mlp.fc2 = nn.Linear(WIDTH, WIDTH)
    return model


REFUSALS: dict[str, tuple[Any, Pathway, str]] = {
    "no auxiliary": ({}, Pathway(), "auxiliaries: at least one is needed"),
    "a name with a dot": ({"a.b": tiny(1)}, Pathway(), "a name without dots, not 'a.b'"),
    "an empty name": ({"": tiny(1)}, Pathway(), "a name without dots, not ''"),
    "too deep": (
        {"a": tiny(1, 4)},
        Pathway(),
        "auxiliary 'a': mapping: .* has 4 blocks and the target 3",
    ),
    "too shallow": ({"a": tiny(1, 2).state_dict()}, Pathway(), "has 2 blocks and the target 3"),
    "a list for another depth": (
        {"a": tiny(1, 4)},
        Pathway(mapping=(0, 3)),
        r"auxiliary 'a': mapping: \[0, 3\] must name one of .* 0 to 3 for each of .* 3 blocks",
    ),
    "a list beyond the auxiliary": (
        {"a": tiny(1, 2)},
        Pathway(mapping=(0, 1, 2)),
        r"auxiliary 'a': mapping: .* blocks 0 to 1",
    ),
    "no bias to add": (
        {"a": _without("blocks.0.mlp.fc1.bias")},
        Pathway(bias="added"),
        r"auxiliary 'a': blocks.0.mlp.fc1.bias .*pathway.bias: added.*: the auxiliary has no such",
    ),
    "a rank that no matrix has": (
        {"a": tiny(1)},
        Pathway(prepare="rank:13"),
        r"prepare: auxiliary 'a': blocks.0.attn.qkv is \(36, 12\), so its rank is at most 12",
    ),
    "a change of a rank that no matrix has": (
        {"a": tiny(1)},
        Pathway(trainable="rank:13"),
        r"trainable: blocks.0.attn.qkv is \(36, 12\), so its rank is at most 12, not 13",
    ),
    "no blocks": ({"a": nn.Linear(2, 2)}, Pathway(), "auxiliary 'a': .*`blocks`.*not Linear"),
    "no weights": ({"a": {}}, Pathway(), "auxiliary 'a': .*found nothing"),
    "other keys": ({"a": {"layer.0.q": 1}}, Pathway(), "auxiliary 'a': .*found layer.0.q"),
    "too wide": (
        {"a": tiny(1, width=24)},
        Pathway(),
        r"auxiliary 'a': blocks.0.attn.qkv.weight for the target's blocks.0.attn.qkv: "
        r"the target's weight is \(36, 12\), the auxiliary's is \(72, 24\)",
    ),
    "the second does not fit, late, reversed": (
        {"a": tiny(1), "b": _narrow_fc2()},
        Pathway(mapping="reversed"),
        r"auxiliary 'b': blocks.2.mlp.fc2.weight for the target's blocks.0.mlp.fc2: "
        r"the target's weight is \(12, 24\), the auxiliary's is \(12, 12\)",
    ),
    "one is missing": (
        {"a": _without("blocks.1.mlp.fc1.weight")},
        Pathway(mapping=1),
        "auxiliary 'a': blocks.1.mlp.fc1.weight for the target's blocks.0.mlp.fc1: .*no such",
    ),
    "NaN": (
        {"a": _with("blocks.2.attn.proj.weight", torch.nan)},
        Pathway(),
        "auxiliary 'a': blocks.2.attn.proj.weight .*NaN or infinite",
    ),
    "infinite": (
        {"a": _with("blocks.1.mlp.fc2.weight", torch.inf)},
        Pathway(),
        "auxiliary 'a': blocks.1.mlp.fc2.weight .*NaN or infinite",
    ),
    "integers": (
        {"a": {key: weight.int() for key, weight in tiny(1).state_dict().items()}},
        Pathway(),
        "auxiliary 'a': .*floating point is needed, not torch.int32",
    ),
    "covers a fourth block": (
        {"a": tiny(1)},
        Pathway(Coverage((0, 3))),
        "block 3 is covered, but the target has 3 blocks",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_and_the_target_left_untouched(case: str) -> None:
    auxiliaries, pathway, message = REFUSALS[case]
    target = tiny(0)
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        attach_pathway(target, auxiliaries, pathway)
    assert same(before, snapshot(target))


@pytest.mark.slow
@few
@given(cases(inits), st.data())
def test_one_wrong_weight_anywhere_is_refused_if_and_only_if_it_is_used(
    case: Case, data: st.DataObject
) -> None:
    depth, pathway = case.depth, case.pathway
    auxiliaries = {name: dict(a.state_dict()) for name, a in case.auxiliaries().items()}
    name = data.draw(st.sampled_from(sorted(auxiliaries)))
    block, linear = data.draw(st.sampled_from(select(Coverage(), case.theirs)))
    auxiliaries[name][f"{layer_name(block, linear)}.weight"] = torch.zeros(3, 2)
    partners = mapping(pathway.mapping, depth, case.theirs)
    target = case.target()
    before = snapshot(target)
    covered = select(pathway.coverage, depth)
    if (block, linear) in {(partners[own], name) for own, name in covered}:
        wrong = re.escape(
            f"auxiliary {name!r}: {layer_name(block, linear)}.weight for the target's"
        )
        with pytest.raises(ValueError, match=wrong + r" .* the auxiliary's is \(3, 2\)"):
            attach_pathway(target, auxiliaries, pathway)
        assert same(before, snapshot(target))
    else:
        attach_pathway(target, auxiliaries, pathway)
        assert len(scales(target)) == case.count * len(covered)


def test_attaching_twice_is_refused() -> None:
    target = attach_pathway(tiny(0), {"a": tiny(1)}, Pathway(Coverage((1,), ("fc2",))))
    before = snapshot(target)
    with pytest.raises(ValueError, match="has a pathway already"):
        attach_pathway(target, {"b": tiny(2)}, Pathway(Coverage((0,))))
    assert same(before, snapshot(target))


def test_targets_that_cannot_take_part_are_refused() -> None:
    with pytest.raises(ValueError, match="target: a module with a non-empty `blocks`"):
        attach_pathway(nn.Linear(2, 2), {"a": tiny(1)})
    gated = tiny(0)
    gated.blocks[1].mlp.fc1 = nn.Identity()
    with pytest.raises(ValueError, match=r"no linear blocks.1.mlp.fc1 .* leave it out"):
        attach_pathway(gated, {"a": tiny(1)})
    attach_pathway(gated, {"a": tiny(1)}, Pathway(Coverage(linears=("qkv",))))
    normed = tiny(0)
    nn.utils.parametrizations.weight_norm(normed.blocks[0].attn.proj)
    with pytest.raises(ValueError, match=r"blocks.0.attn.proj is parametrized already"):
        attach_pathway(normed, {"a": tiny(1)})
    tied = tiny(0)
    tied.blocks[2].mlp = tied.blocks[0].mlp
    with pytest.raises(ValueError, match="blocks share their linears"):
        attach_pathway(tied, {"a": tiny(1)})
    uneven = tiny(0)
    uneven.blocks[0].attn.qkv = nn.Linear(WIDTH, 3 * WIDTH + 1)
    with pytest.raises(
        ValueError, match=r"split_qkv: the 37 rows of the target's blocks.0.attn.qkv"
    ):
        attach_pathway(uneven, {"a": uneven}, Pathway(scale=Scale(split_qkv=True)))


def test_what_cannot_be_fused_is_refused_before_anything_is() -> None:
    target = tiny(0)
    attach_pathway(target, {"a": tiny(1)})
    nn.utils.parametrizations.spectral_norm(target.blocks[2].mlp.fc2)
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"fuse: blocks.2.mlp.fc2 is parametrized by something"):
        fuse_pathway(target)
    assert same(before, snapshot(target))

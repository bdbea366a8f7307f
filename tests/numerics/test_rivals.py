"""Rivals of a pathway: where they start, what learns of them, and what is left in use."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2pt import inference
from m2pt.data.config import DataConfig
from m2pt.inference import time_inference
from m2pt.models.config import ModelConfig, linear_shape
from m2pt.pathway.config import LINEARS, Coverage, Pathway
from m2pt.pathway.coverage import layer_name
from m2pt.pathway.reparam import auxiliary_names, has_pathway, scale_names
from m2pt.rivals.config import COMPOSED, KINDS, Rival, RivalKind
from m2pt.rivals.join import added_names, attach_rival, merge_rival
from m2pt.rivals.size import added, matched, trained_by_pathway
from m2pt.training import numerics as numerics_module
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, TrainingConfig
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import from_bytes, to_bytes
from orchestrator.promotion.cost import cost_of
from orchestrator.promotion.export import Identity, PromotionError, Trained, export_model
from tests.numerics.pathway_setup import auxiliaries_for, images, tiny
from tests.numerics.training_setup import (
    FP64,
    MODEL,
    block_weights,
    config_of,
    digits,
    same_bits,
    training_of,
)

RIVALS = {
    "calm": Rival("calm", every=1),
    "gats": Rival("gats", every=2, width=6),
    "average": Rival("average", share=0.25),
    "lora": Rival("lora", rank=3),
}
COMPILED = Numerics("bf16", compile=True)
with_peft = pytest.mark.slow  # importing it takes seconds
EACH = [pytest.param(name, marks=with_peft if name == "lora" else ()) for name in KINDS]


def auxiliaries_of(kind: str, depth: int = 4, count: int = 2) -> dict[str, Any]:
    return auxiliaries_for(depth, count) if RIVALS[kind].borrows else {}


def rival_config(kind: str, **recipe: Any) -> TrainingConfig:
    return replace(config_of(**recipe), rival=RIVALS[kind])


@pytest.mark.parametrize("kind", ["calm", "gats", pytest.param("lora", marks=with_peft)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_with_a_rival_starts_as_the_plain_one_bit_for_bit(
    kind: str, dtype: torch.dtype
) -> None:
    plain, inputs = tiny(1, depth=3).to(dtype), images().to(dtype)
    target = attach_rival(copy.deepcopy(plain), auxiliaries_of(kind), RIVALS[kind])
    with torch.no_grad():
        assert torch.equal(target(inputs), plain(inputs))
        target.train()
        plain.train()
        assert torch.equal(target(inputs), plain(inputs))
        assert torch.equal(copy.deepcopy(target)(inputs), plain(inputs))
    assert {p.dtype for p in target.parameters()} == {dtype}


@pytest.mark.parametrize("kind", EACH)
def test_a_rival_is_drawn_from_its_seed_and_from_nothing_else(kind: str) -> None:
    before = torch.get_rng_state()
    one, other, another = (
        attach_rival(tiny(1, depth=2), auxiliaries_of(kind, 2), RIVALS[kind], seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert same_bits(one.state_dict(), other.state_dict())
    assert same_bits(one.state_dict(), another.state_dict()) == (kind == "average")


@pytest.mark.parametrize("kind", EACH)
def test_gradients_reach_what_learns_and_nothing_else(kind: str) -> None:
    target = attach_rival(tiny(1, depth=2), auxiliaries_of(kind, 2), RIVALS[kind])
    with torch.no_grad():  # away from 0, so that all of a connection matters
        for name in added_names(target):
            target.get_parameter(name).add_(0.1)
    torch.autograd.backward(target(images()).square().sum())
    got = {name for name, p in target.named_parameters() if p.grad is not None}
    learned = {name for name, p in target.named_parameters() if p.requires_grad}
    assert got == learned
    frozen = {name for name, _ in target.named_parameters()} - learned
    assert all(name.startswith("rival.trunks.") for name in frozen)
    assert bool(frozen) == (kind in COMPOSED)
    assert added_names(target) <= learned
    grads = [target.get_parameter(name).grad for name in added_names(target)]
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("kind", COMPOSED)
def test_the_auxiliary_sees_the_targets_tokens_and_is_paired_by_depth(kind: RivalKind) -> None:
    """Its blocks, with norms of no scale, are those of the module that lent them."""
    lent = tiny(5, depth=6)
    target: Any = attach_rival(tiny(1, depth=4), {"audio": lent}, Rival(kind, every=2))
    for norm in [m for m in lent.blocks.modules() if isinstance(m, nn.LayerNorm)]:
        assert norm.weight is not None
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    tokens = target.patch_embed(images()) + target.pos_embed[:, 1:]
    (trunk,) = target.rival.trunks
    assert trunk.taps == (2, 5)
    assert target.rival.places == (1, 3)
    with torch.no_grad():
        first, last = trunk(tokens)
        assert torch.equal(first, lent.blocks[:3](tokens))
        assert torch.equal(last, lent.blocks(tokens))


def drawn_connection(rival: Rival) -> tuple[Any, Tensor, Tensor]:
    """The one connection of a target in float64, its output away from 0; tokens of both models."""
    generator = torch.Generator().manual_seed(0)
    target: Any = attach_rival(tiny(1, depth=2).double(), auxiliaries_for(2, 1), rival)
    (connection,) = target.rival.connections
    for name, parameter in connection.named_parameters():
        if name.endswith(("out_proj.weight", "scatter.weight")):
            nn.init.normal_(parameter, generator=generator)
    tokens, stream = torch.randn(2, 2, 4, 12, generator=generator, dtype=torch.float64).unbind()
    return connection.requires_grad_(False), tokens, stream


def test_cross_attention_is_the_papers() -> None:
    """H + softmax(q kᵀ / √d) v W_O over the heads, q of the target's tokens, k and v of f_proj(H'),
    written out."""
    connection, tokens, stream = drawn_connection(Rival("calm", every=2))
    (reader,) = connection.readers
    seen = reader.norm(reader.project(stream))
    weights = reader.attention.in_proj_weight.chunk(3)
    q, k, v = (
        (one @ weight.T).unflatten(2, (3, 4)).transpose(1, 2)
        for one, weight in zip((connection.norm(tokens), seen, seen), weights, strict=True)
    )
    read = ((q @ k.transpose(2, 3) / 2).softmax(3) @ v).transpose(1, 2).flatten(2)
    wanted = tokens + read @ reader.attention.out_proj.weight.T
    assert torch.allclose(connection(tokens, [stream]), wanted, rtol=0, atol=1e-12)


def test_gathering_attends_over_both_and_steers_the_target_alone() -> None:
    connection, tokens, stream = drawn_connection(Rival("gats", every=2, width=6))
    both = zip(connection.gather, connection.norms, (tokens, stream), strict=True)
    attended = connection.attend(torch.cat([gather(norm(one)) for gather, norm, one in both], 1))
    assert attended.shape == (2, 8, 6)
    wanted = tokens + connection.scatter(attended[:, :4])
    assert torch.equal(connection(tokens, [stream]), wanted)


@pytest.mark.parametrize("kind", COMPOSED)
def test_a_connection_reads_each_auxiliary(kind: str) -> None:
    target: Any = attach_rival(tiny(1, depth=2), auxiliaries_of(kind, 2), RIVALS[kind])
    with torch.no_grad():
        for name in added_names(target):
            target.get_parameter(name).add_(0.1)
        before = target(images())
        for trunk in target.rival.trunks:
            weight = trunk.blocks[0].attn.proj.weight
            kept = weight.clone()
            weight.neg_()
            assert not torch.equal(target(images()), before)
            weight.copy_(kept)
        assert torch.equal(target(images()), before)


def test_an_average_is_of_the_weights_that_meet() -> None:
    plain, lent = tiny(1, depth=3), auxiliaries_for(3, 2)
    rival = Rival(
        "average", share=0.3, mapping="reversed", coverage=Coverage(blocks=(0, 2), linears=("fc1",))
    )
    target = attach_rival(copy.deepcopy(plain), lent, rival)
    own, averaged = plain.state_dict(), target.state_dict()
    for block in (0, 2):
        name = f"{layer_name(block, 'fc1')}.weight"
        theirs = [a.state_dict()[f"{layer_name(2 - block, 'fc1')}.weight"] for a in lent.values()]
        wanted = 0.7 * own.pop(name) + 0.3 * (theirs[0] + theirs[1]) / 2
        assert torch.allclose(averaged.pop(name), wanted, rtol=0, atol=1e-6)
    assert same_bits(own, averaged)
    assert not added_names(target)


def test_an_average_of_some_thirds_leaves_the_others() -> None:
    plain, lent = tiny(1, depth=1), auxiliaries_for(1, 1)
    rival = Rival("average", share=1.0, coverage=Coverage(linears=("q", "v")))
    target = attach_rival(copy.deepcopy(plain), lent, rival)
    name = f"{layer_name(0, 'qkv')}.weight"
    q, k, v = target.state_dict()[name].chunk(3)
    (audio,) = lent.values()
    assert torch.equal(torch.cat([q, v]), torch.cat(audio.state_dict()[name].chunk(3)[::2]))
    assert torch.equal(k, plain.state_dict()[name].chunk(3)[1])


@with_peft
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lora_merges_into_the_plain_model(dtype: torch.dtype) -> None:
    plain = tiny(1, depth=2).to(dtype)
    rival = Rival("lora", rank=4, coverage=Coverage(blocks="last:1", linears=("qkv", "fc2")))
    target = attach_rival(copy.deepcopy(plain), {}, rival)
    assert len(added_names(target)) == 4
    with torch.no_grad():
        for name in added_names(target):
            target.get_parameter(name).normal_(std=0.3)
        before = target(images().to(dtype))
        merged = merge_rival(copy.deepcopy(target))
        after = merged(images().to(dtype))
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert not same_bits(merged.state_dict(), plain.state_dict())
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    assert torch.equal(target(images().to(dtype)), before)


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("auxiliaries", [1, 2])
def test_parameters_are_as_many_as_are_counted(kind: str, auxiliaries: int) -> None:
    model = ModelConfig(width=12, depth=4, heads=3, mlp_ratio=2.0)
    target, rival = tiny(1, depth=4), RIVALS[kind]
    plain = sum(p.numel() for p in target.parameters())
    theirs = 5 if kind in COMPOSED else 4
    lent = auxiliaries_of(kind, theirs, auxiliaries)
    attach_rival(target, lent, rival)
    counted = added(rival, model, len(lent), depth=theirs)
    frozen = sum(p.numel() for p in target.parameters() if not p.requires_grad)
    assert frozen == counted.frozen
    assert (
        sum(target.get_parameter(name).numel() for name in added_names(target)) == counted.trained
    )
    merge_rival(target)
    assert sum(p.numel() for p in target.parameters()) - plain == counted.inference


@pytest.mark.parametrize(
    "pathway",
    [
        Pathway(),
        Pathway(trainable=False, coverage=Coverage(linears=("q", "fc2"))),
        Pathway(trainable="rank:2", bias="added"),
        Pathway(bias="added", coverage=Coverage(blocks="last:1")),
    ],
)
def test_a_matched_rank_trains_as_much_as_the_pathway(pathway: Pathway) -> None:
    with_biases = {
        key: value
        for key, value in digits_blocks().items()
        if pathway.bias == "added" or not key.endswith("bias")
    }
    training = Training(config_of(pathway), digits(), {"audio": with_biases})
    extra = auxiliary_names(training.model) | scale_names(training.model)
    learned = [training.model.get_parameter(name) for name in extra]
    wanted = sum(p.numel() for p in learned if p.requires_grad)
    assert trained_by_pathway(MODEL, pathway, 1) == wanted
    rival = matched(Rival("lora"), MODEL, pathway, 1)
    assert isinstance(rival.rank, int)
    step = sum(sum(linear_shape(MODEL, name)) for name in LINEARS) * MODEL.depth
    assert abs(rival.rank * step - wanted) <= step / 2 or rival.rank == 1


def digits_blocks() -> dict[str, Tensor]:
    """Block weights with biases."""
    weights = block_weights()
    for key in list(weights):
        weights[key.replace("weight", "bias")] = torch.zeros(len(weights[key]))
    return weights


def test_matched_is_three_quarters_of_the_width_and_never_more_than_full() -> None:
    model = ModelConfig(width=64, depth=4, heads=4)
    assert matched(Rival("lora"), model, Pathway(), 1).rank == 48
    assert matched(Rival("lora"), model, Pathway(), 2).rank == 64
    assert matched(Rival("lora"), model, Pathway(trainable=False), 1).rank == 1
    assert matched(Rival("lora", rank=5), model, Pathway(), 1).rank == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_the_same_as_never_stopped(kind: str) -> None:
    config = rival_config(kind, epochs=3, mixup=0.3, layer_decay=0.8, ema_decay=0.7)
    whole, session = training_of(config), MemorySession()
    assert drive(whole, session) == "finished"
    first = MemorySession(stop_after=1)
    assert drive(training_of(config), first) == "stopped"
    assert first.state is not None
    assert not any("trunks" in name for name in first.state.tensors)
    second, resumed = MemorySession(state=from_bytes(to_bytes(first.state))), training_of(config)
    assert drive(resumed, second) == "finished"
    assert same_bits(whole.model.state_dict(), resumed.model.state_dict())
    assert session.state is not None
    assert second.state is not None
    assert to_bytes(session.state) == to_bytes(second.state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", ["all", "probe"])
def test_training_moves_what_learns_and_leaves_the_auxiliary(kind: str, train: str) -> None:
    training = training_of(rival_config(kind, train=train))
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    list(training.epochs())
    moved = {n for n, p in training.model.named_parameters() if not torch.equal(p, before[n])}
    assert added_names(training.model) <= moved
    assert not any("trunks" in name for name in moved)
    own = {n for n in moved - added_names(training.model) if not n.startswith("head.")}
    assert bool(own) == (train == "all")


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPOSED)
def test_another_auxiliary_under_a_state_is_refused(kind: str) -> None:
    config = rival_config(kind)
    session = MemorySession(stop_after=1)
    drive(training_of(config), session)
    assert session.state is not None
    other = Training(config, digits(), {"audio": block_weights(seed=8)})
    with pytest.raises(ValueError, match=r"digests.frozen_auxiliaries"):
        other.restore(session.state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "numerics"),
    [*((kind, FP64) for kind in KINDS), *((kind, COMPILED) for kind in ("calm", "lora"))],
)
def test_rivals_train_in_every_arithmetic(
    kind: str, numerics: Numerics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics_module, "COMPILE_BACKEND", "eager")  # graphs, but no kernels
    training = training_of(
        replace(rival_config(kind, epochs=1, warmup_epochs=0), numerics=numerics)
    )
    (report,) = training.epochs()
    assert report.metrics["val/loss"] > 0


@pytest.mark.parametrize(
    ("rival", "depth", "names", "rule"),
    [
        (Rival("calm", every=2), 1, 1, "has 1 blocks, and 2 connections"),
        (Rival("calm"), 4, 0, "calm needs at least one auxiliary"),
        (Rival("lora", rank=2), 4, 1, "lora has no auxiliary, not"),
        (Rival("lora"), 4, 0, "`matched` turns the word into one"),
        (Rival(), 4, 0, "null is no rival"),
        (Rival("average"), 3, 1, "auxiliary 'audio': rival.mapping: the auxiliary has 3 blocks"),
        (Rival("average", coverage=Coverage(blocks="last:5")), 4, 1, "needs 5 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_target_is_as_it_was(
    rival: Rival, depth: int, names: int, rule: str
) -> None:
    target = tiny(1, depth=4)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=rule):
        attach_rival(target, auxiliaries_for(depth, names), rival)
    assert same_bits(before, target.state_dict())
    with pytest.raises(ValueError, match="width"):
        attach_rival(target, auxiliaries_for(4, 1, width=9), Rival("gats", every=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_folded_is_exported_as_a_plain_model(kind: RivalKind) -> None:
    training = training_of(rival_config(kind, epochs=1, ema_decay=0.5))
    list(training.epochs())
    lent = {"audio": block_weights()} if RIVALS[kind].borrows else {}
    trained = Trained(training.config, training.capture(), lent)
    identity = Identity("0123456789ab", "f" * 64)
    if kind in COMPOSED:
        with pytest.raises(PromotionError, match=f"{kind} needs its auxiliary beside the target"):
            export_model(trained, digits(), identity)
        return
    export = export_model(trained, digits(), identity, prove_on_test=True)
    assert not export.proof.failures()
    assert export.about["rival"]["kind"] == kind
    tolerance = {at.dtype: at.tolerance for at in export.proof.dtypes}["bfloat16"]
    assert tolerance == (2**-5 if kind == "lora" else 2**-6)  # Wx and BAx are rounded apart
    assert export.proof.parameters_exported == export.proof.parameters_plain


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, None])
def test_what_a_model_costs_is_measured_and_counted(kind: RivalKind | None) -> None:
    config = config_of(Pathway()) if kind is None else rival_config(kind)
    training = training_of(config)
    found = cost_of(training.model, config, digits(), device="cpu")
    assert not has_pathway(training.model)
    counted = None if kind is None else added(RIVALS[kind], MODEL, int(RIVALS[kind].borrows))
    wanted = trained_by_pathway(MODEL, Pathway(), 1) if counted is None else counted.trained
    assert found["cost/trained_parameters"] == wanted
    assert found["cost/inference_parameters"] == (counted.inference if counted else 0)
    assert found["cost/samples_per_second"] > 0
    assert found["cost/inference_ratio"] > 0


class Clock(nn.Module):
    """A model that takes as many seconds for a sample as it says, and more when held up."""

    now = 0.0

    def __init__(self, seconds: float, held_up: float = 0.0) -> None:
        super().__init__()
        self.seconds, self.held_up, self.calls = seconds, held_up, 0

    def forward(self, samples: Tensor) -> Tensor:
        self.calls += 1
        Clock.now += self.seconds * len(samples) + self.held_up * (self.calls % 3 == 0)
        return samples


@pytest.mark.parametrize(("each", "batch"), [(0.001, 8), (0.1, 1)])
def test_a_ratio_of_times_bears_interruptions(
    each: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "perf_counter", lambda: Clock.now)
    slow, plain = Clock(2 * each, held_up=30.0), Clock(each, held_up=7.0)
    found = time_inference((slow, plain), (torch.ones(8, 1),), Numerics(), seconds=0.5)
    assert found.ratio == pytest.approx(2.0)
    assert (found.batch, found.rounds) == (batch, 15)
    assert found.samples_per_second == pytest.approx(1 / (2 * each))


def test_a_model_of_parts_cannot_be_composed() -> None:
    config = TrainingConfig(MODEL, DataConfig("shape-parts", limit=20), rival=RIVALS["calm"])
    with pytest.raises(ValueError, match="tells the parts of points"):
        training_of(config)

"""Masked autoencoding: learns on every modality, repeats bit for bit, and sees no masked token."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.load import load
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.mae import LOSS, MaskedAutoencoding, pretrain
from m2pt.pretrain.targets import chamfer_loss, group_targets, patch_targets
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import from_bytes, to_bytes
from m2pt.weights.blocks import block_weights

MODEL = ModelConfig(width=32, depth=2, heads=2)
SMALL = ModelConfig(width=16, depth=1, heads=2)
TOKENIZERS = {
    "digits": Tokenizer(patch=2),
    "tones": Tokenizer(patch=8),
    "shapes": Tokenizer(groups=16, group_size=8),
    "clips": Tokenizer(patch=4, tubelet=4),
    "scenes": Tokenizer(patch=8),
    "shape-parts": Tokenizer(groups=16, group_size=8),
}


def config(name: str, **values: Any) -> PretrainConfig:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 3e-3}
    data = DataConfig(name, limit=128)
    return PretrainConfig(data, TOKENIZERS[name], **settings | values)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EMBEDDED))
def test_the_loss_falls_and_the_run_repeats(name: str) -> None:
    torch.manual_seed(0)
    first = MaskedAutoencoding(config(name), MODEL)
    reports = list(first.epochs())
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert reports[-1].metrics[LOSS] < 0.95 * reports[0].metrics[LOSS]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = MaskedAutoencoding(config(name), MODEL)
    losses = [report.metrics[LOSS] for report in again.epochs()]
    assert torch.equal(torch.get_rng_state(), state)
    assert losses == [report.metrics[LOSS] for report in reports]
    made, repeated = first.block_weights(), again.block_weights()
    assert all(torch.equal(made[key], repeated[key]) for key in made)


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_a_run_that_goes_on_is_the_same_bit_for_bit(name: str) -> None:
    data = load(DataConfig(name, limit=12))
    short = replace(config(name, epochs=2, batch_size=8), data=DataConfig(name, limit=12))
    whole, first = (MaskedAutoencoding(short, SMALL, dataset=data) for _ in range(2))
    losses = [report.metrics for report in whole.epochs()]
    session = MemorySession(stop_after=1)
    assert drive(first, session) == "stopped"
    assert session.state is not None
    kept = to_bytes(session.state)
    again, rest = MaskedAutoencoding(short, SMALL, dataset=data), MemorySession()
    rest.state = from_bytes(kept)
    assert drive(again, rest) == "finished"
    assert [report.metrics for report in (*session.reports, *rest.reports)] == losses
    assert to_bytes(again.capture()) == to_bytes(whole.capture())


def test_a_state_of_another_run_is_refused() -> None:
    data = load(DataConfig("digits", limit=12))
    state = MaskedAutoencoding(config("digits"), MODEL, dataset=data).capture()
    other = MaskedAutoencoding(config("digits", mask_ratio=0.5), MODEL, dataset=data)
    with pytest.raises(ValueError, match=r"recipe.mask_ratio is 0.6 in the state and 0.5 here"):
        other.restore(state)
    kept = MaskedAutoencoding(config("digits", keep_epochs=(1,)), MODEL, dataset=data)
    kept.restore(state)


def test_the_blocks_fit_a_target_of_another_modality() -> None:
    run = MaskedAutoencoding(config("tones", epochs=1), MODEL)
    before = run.block_weights()
    list(run.epochs())
    made = run.block_weights()
    target = block_weights(build_model(MODEL, load(DataConfig("digits")).info, seed=0))
    assert {key: w.shape for key, w in made.items()} == {key: w.shape for key, w in target.items()}
    assert all(not torch.equal(made[key], before[key]) for key in made)


def test_an_auxiliary_does_not_start_as_a_target_of_the_same_seed() -> None:
    data = load(DataConfig("tones"))
    start = MaskedAutoencoding(config("tones", seed=3), MODEL).block_weights()
    shaped = ModelConfig(width=32, depth=2, heads=2, tokenizer=TOKENIZERS["tones"])
    target = block_weights(build_model(shaped, data.info, seed=3))
    assert not torch.equal(start["blocks.0.attn.qkv.weight"], target["blocks.0.attn.qkv.weight"])


def test_seeds_differ() -> None:
    one, other = (list(pretrain(config("clips", epochs=1, seed=seed), MODEL)) for seed in (0, 1))
    assert one[0].metrics != other[0].metrics


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_the_encoder_sees_no_masked_token(name: str) -> None:
    run = MaskedAutoencoding(config(name), MODEL)
    network: Any = run._network
    seen: list[torch.Size] = []
    network.encoder.blocks.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].shape)
    )
    samples, _ = load(DataConfig(name)).train.batch(range(4))
    order = torch.arange(network.tokens).repeat(4, 1)
    loss = network(samples, order)
    visible = network.tokens - network.masked
    assert seen == [torch.Size([4, visible, 32])]
    assert network.masked == round(0.6 * network.tokens)
    assert loss.isfinite()


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_something_is_always_seen_and_something_hidden(ratio: float) -> None:
    network: Any = MaskedAutoencoding(config("digits", mask_ratio=ratio), MODEL)._network
    assert 1 <= network.masked <= network.tokens - 1


def test_one_token_is_too_few() -> None:
    with pytest.raises(ValueError, match="needs 2 tokens or more, but a sample has 1"):
        MaskedAutoencoding(PretrainConfig(DataConfig("digits"), Tokenizer(patch=8)), MODEL)


def test_a_rate_that_is_too_high_is_named() -> None:
    with pytest.raises(FloatingPointError, match=r"pretrain, epoch \d: .*learning_rate 1e\+30"):
        list(MaskedAutoencoding(config("digits", learning_rate=1e30), MODEL).epochs())


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("digits", Tokenizer(patch=4)), ("clips", Tokenizer(patch=4, tubelet=2))],
)
def test_targets_are_in_the_order_of_the_tokens(name: str, tokenizer: Tokenizer) -> None:
    """A change of one patch of the input shows in the token and in the target of one number."""
    info = load(DataConfig(name)).info
    model: Any = build_model(ModelConfig(width=32, heads=2, tokenizer=tokenizer), info, seed=0)
    torch.manual_seed(0)
    plain = torch.randn(1, *info.shape)
    corner = (0, 0, *([2] if info.modality == "video" else []), 4, 0)
    changed = plain.clone()
    changed[corner] += 5
    token = (model.patch_embed(changed) != model.patch_embed(plain)).any(dim=-1)
    target = (patch_targets(changed, tokenizer) != patch_targets(plain, tokenizer)).any(dim=-1)
    assert torch.equal(token, target)
    assert int(token.sum()) == 1


def test_chamfer_ignores_the_order_of_points() -> None:
    points = torch.randn(2, 3, 8, 3, generator=torch.Generator().manual_seed(0))
    assert chamfer_loss(points.flip(2).flatten(2), points) == 0
    assert chamfer_loss((points + 0.5).flatten(2), points) > 0
    sizes = group_targets(0.01 * points).square().sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(sizes, torch.ones(2, 3))

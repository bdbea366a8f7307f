"""Models of all modalities: timm's, seeded, trainable, and their own point and video tokens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer

from m2pt.data.config import DataInfo, Modality
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, NormKind, Tokenizer
from m2pt.models.options import sine_positions
from m2pt.models.parts import interpolation
from m2pt.models.point import PointEmbed, farthest_points, nearest_points, take_points
from m2pt.models.tokens import token_count

SHAPES: dict[Modality, tuple[int, ...]] = {
    "image": (3, 16, 8),
    "audio": (1, 32, 16),
    "video": (1, 4, 8, 8),
    "point": (64, 3),
}
MODALITIES = list(SHAPES)
SMALL = ModelConfig(
    width=32, depth=2, heads=2, tokenizer=Tokenizer(patch=4, tubelet=2, groups=8, group_size=8)
)


def info(modality: Modality, classes: int = 5) -> DataInfo:
    names = tuple(str(number) for number in range(classes))
    return DataInfo(modality, SHAPES[modality], classes, names, "")


def built(modality: Modality, config: ModelConfig = SMALL, *, seed: int = 0) -> Any:
    """`Any`: timm has no types."""
    return build_model(config, info(modality), seed=seed)


def samples(modality: Modality, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *SHAPES[modality], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_model_is_a_timm_vision_transformer(modality: Modality) -> None:
    model = built(modality)
    assert type(model) is VisionTransformer
    assert [type(block) for block in model.blocks] == [Block, Block]
    assert model.cls_token is None
    assert model.patch_embed.num_patches == token_count(SMALL.tokenizer, info(modality))
    tokens = model.patch_embed(samples(modality))
    assert tokens.shape == (3, model.patch_embed.num_patches, 32)
    logits = model(samples(modality))
    assert logits.shape == (3, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_all_parameters_learn(modality: Modality) -> None:
    model = built(modality)
    model(samples(modality)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("modality", MODALITIES)
def test_equal_arguments_give_equal_weights(modality: Modality) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (built(modality, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_sample_does_not_depend_on_its_batch(modality: Modality) -> None:
    model = built(modality).eval()
    with torch.no_grad():
        whole = model(samples(modality, 6))
        alone = torch.cat([model(one[None]) for one in samples(modality, 6)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_models_in_double_precision(modality: Modality) -> None:
    assert built(modality).double()(samples(modality).double()).dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["video", "point"])
def test_the_whole_graph_compiles(modality: Modality) -> None:
    model = built(modality).eval()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(samples(modality)), model(samples(modality)))
    torch._dynamo.reset()


def test_settings_reach_the_blocks() -> None:
    config = ModelConfig(
        width=24,
        depth=3,
        heads=3,
        mlp_ratio=2.0,
        qkv_bias=False,
        drop_path=0.3,
        tokenizer=Tokenizer(patch=4),
    )
    model = built("image", config)
    assert len(model.blocks) == 3
    assert model.blocks[0].attn.num_heads == 3
    assert model.blocks[0].attn.qkv.bias is None
    assert model.blocks[0].mlp.fc1.weight.shape == (48, 24)
    assert model.blocks[2].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("modality", MODALITIES)
def test_options_of_the_papers_models(modality: Modality) -> None:
    pool: Any = "token_max" if modality == "point" else "mean"
    positions: Any = "learned" if modality == "point" else "fixed"
    config = replace(SMALL, class_token=True, pool=pool, positions=positions)
    model = built(modality, config).eval()
    assert type(model) is VisionTransformer
    assert model(samples(modality)).shape == (3, 5)
    moved = model.cls_token.detach().clone()
    with torch.no_grad():
        plain = model(samples(modality))
        model.cls_token.add_(1.0)
        assert not torch.allclose(model(samples(modality)), plain)
        model.cls_token.copy_(moved)
    model.train()(samples(modality)).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == (set() if modality == "point" else {"pos_embed"})
    assert not any(p.requires_grad for name, p in model.named_parameters() if name == "pos_embed")


def test_fixed_positions_are_the_papers() -> None:
    table = sine_positions((2, 3), 8)
    torch.testing.assert_close(table.square().sum(dim=1), torch.full((6,), 4.0))
    assert len({tuple(row) for row in table.tolist()}) == 6
    assert torch.equal(table[0].sort().values, torch.tensor([0.0] * 4 + [1.0] * 4))
    alike = (table[0] == table[3]).sum()  # the same column: that half is the same
    assert alike == 4
    line = sine_positions((2, 2, 2), 4)
    places = torch.arange(8.0)
    wanted = [places.sin(), places.cos(), (places / 100).sin(), (places / 100).cos()]
    torch.testing.assert_close(line, torch.stack(wanted, dim=1))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pool": "token"}, "pool: token needs class_token: true"),
        ({"pool": "max"}, "pool: mean, token, token_max, but it is 'max'"),
        ({"positions": "sine"}, "positions: learned, fixed, but it is 'sine'"),
        ({"positions": "fixed", "width": 6, "heads": 2}, "positions: fixed needs a width"),
    ],
)
def test_options_that_do_not_fit(values: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelConfig(**values)


def test_points_have_no_fixed_positions() -> None:
    with pytest.raises(ValueError, match="positions: fixed is for patches"):
        built("point", replace(SMALL, positions="fixed"))


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.patch: must divide 16"):
        built("image", ModelConfig(tokenizer=Tokenizer(patch=3)))


def test_tubelets_keep_time_apart() -> None:
    embed = built("video").patch_embed
    clip = torch.zeros(1, *SHAPES["video"])
    still = embed(clip)
    clip[:, :, 2:] = 1  # the second of two tubelets
    moved = embed(clip)
    assert torch.equal(moved[:, :4], still[:, :4])
    assert (moved[:, 4:] != still[:, 4:]).any(dim=-1).all()


def test_farthest_points_spread_over_the_cloud() -> None:
    line = torch.arange(9.0)[None, :, None] * torch.tensor([1.0, 0, 0])
    indices = farthest_points(line + 0.1, 3)
    assert sorted(indices[0].tolist()) == [0, 4, 8]
    near = nearest_points(line, take_points(line, torch.tensor([[0, 8]])), 3)
    assert near.tolist() == [[[0, 1, 2], [8, 7, 6]]]


def test_points_may_come_in_any_order() -> None:
    model = built("point").eval()
    points = samples("point")
    shuffled = points[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        torch.testing.assert_close(model(points), model(shuffled), atol=1e-5, rtol=1e-5)


def test_equal_points_are_no_trouble() -> None:
    model = built("point").eval()
    assert model(torch.zeros(2, 64, 3)).isfinite().all()


def test_batch_norm_makes_clouds_depend_on_each_other_in_training_alone() -> None:
    embed = PointEmbed(groups=8, group_size=4, embed_dim=16, norm="batch")
    points = samples("point")
    together, alone = embed(points)[:1], embed(points[:1])
    assert not torch.allclose(together, alone, atol=1e-3)
    embed.eval()
    torch.testing.assert_close(embed(points)[:1], embed(points[:1]), atol=1e-5, rtol=1e-5)


def test_groups_are_relative_to_their_centres() -> None:
    embed = PointEmbed(groups=8, group_size=4, embed_dim=16)
    points = samples("point")
    relative, centres = embed.group(points)
    assert relative.shape == (3, 8, 4, 3)
    assert (relative.norm(dim=-1).min(dim=-1).values == 0).all()  # a centre is its own neighbour
    moved, there = embed.group(points + 1)
    torch.testing.assert_close(moved, relative, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(there, centres + 1)


PARTED = DataInfo("point", (64, 3), 2, ("a", "b"), "", "parts", (("p", "q"), ("r", "s", "t")))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_part_segmentation_is_a_timm_transformer_with_a_head_of_its_own(norm: NormKind) -> None:
    config = replace(SMALL, tokenizer=replace(SMALL.tokenizer, norm=norm))
    model: Any = build_model(config, PARTED, seed=0)
    assert isinstance(model, VisionTransformer)
    assert [type(block) for block in model.blocks] == [Block, Block]
    points, category = samples("point"), torch.tensor([0, 1, 1])
    logits = model(points, category)
    assert logits.shape == (3, 64, 5)
    logits.square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    model.eval()
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        known = model(points, category)
        torch.testing.assert_close(model(points[:, shuffled], category), known[:, shuffled],
                                   atol=1e-5, rtol=1e-4)  # fmt: skip
        assert not torch.allclose(model(points, 1 - category), known, atol=1e-3)


def test_part_segmentation_in_full_size_takes_features_of_blocks_3_7_and_11() -> None:
    names = tuple(tuple(f"{c}.{p}" for p in range(4 if c < 2 else 3)) for c in range(16))
    info = DataInfo("point", (2048, 3), 16, tuple(map(str, range(16))), "", "parts", names)
    assert info.outputs == 50
    tokenizer = Tokenizer(groups=128, group_size=32, norm="batch")
    config = ModelConfig(width=768, depth=12, heads=6, qkv_bias=False, tokenizer=tokenizer)
    with torch.device("meta"):
        model: Any = build_model(config, info, seed=0)
    assert model.taps == (3, 7, 11)
    head = model.head
    widths = [head.from_groups, head.propagate[1], head.from_point, head.tell[1], head.tell[3]]
    assert [(layer.in_features, layer.out_features) for layer in widths] == [
        (2304, 3072), (3072, 1024), (1024, 512), (512, 256), (256, 50),
    ]  # fmt: skip


def test_interpolation_is_by_the_inverse_square_of_the_three_nearest() -> None:
    centres = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [5, 5, 5]]])
    points = torch.tensor([[[0.5, 0, 0], [1.0, 0, 0], [0, 1, 0]]])
    spread = interpolation(points, centres)
    assert spread.shape == (1, 3, 4)
    wanted = torch.tensor([1 / 0.25, 1 / 0.25, 1 / 4.25, 0])
    torch.testing.assert_close(spread[0, 0], wanted / wanted.sum())
    torch.testing.assert_close(spread[0, 1], torch.tensor([0.0, 1, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(spread.sum(dim=2), torch.ones(1, 3))
    assert interpolation(points, centres[:, :2]).shape == (1, 3, 2)


@pytest.mark.slow
def test_the_whole_graph_of_part_segmentation_compiles() -> None:
    model = build_model(SMALL, PARTED, seed=0).eval()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    inputs = samples("point"), torch.tensor([0, 1, 1])
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), model(*inputs))
    torch._dynamo.reset()

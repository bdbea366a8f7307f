"""A target that starts from weights computes what their model computed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from m2pt.data.config import DataConfig, Modality
from m2pt.data.load import load
from m2pt.models.build import build_model
from m2pt.models.config import Tokenizer
from m2pt.pretrain.config import PretrainConfig
from m2pt.pretrain.mae import MaskedAutoencoding
from m2pt.pretrain.network import whole_to_be
from m2pt.training.loop import Training
from m2pt.weights import kernels, positions
from m2pt.weights.start import start_from
from m2pt.weights.whole import WholeWeights, whole_from_bytes, whole_to_bytes
from tests.numerics.training_setup import DATA, MODEL, config_of
from tests.unit.test_start import CLASSED, SHAPES, SMALL, info


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def stirred(model: Any) -> Any:
    """Every tensor away from its start, norms and class token among them."""
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            if value.is_floating_point():
                value.add_(0.1 * drawn(number + 1, *value.shape)[-1].abs())
    return model.eval()


def features(model: Any, samples: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.forward_head(model.forward_features(samples), pre_logits=True)
    return found


@pytest.mark.parametrize(
    ("modality", "norm"), [*((one, "layer") for one in SHAPES), ("point", "batch")]
)
def test_the_same_size_gives_the_same_bits(modality: Modality, norm: Any) -> None:
    config = replace(SMALL, tokenizer=replace(SMALL.tokenizer, norm=norm))
    if modality != "point":
        config = replace(config, class_token=True)
    source = stirred(build_model(config, info(modality), seed=1))
    model = build_model(config, info(modality), seed=2).eval()
    samples = drawn(2, *SHAPES[modality])
    assert not torch.equal(features(model, samples), features(source, samples))
    started = start_from(model, source.state_dict(), modality)
    assert torch.equal(features(model, samples), features(source, samples))
    assert started.resampled == frozenset()


@pytest.mark.parametrize("scaled", [None, 0.4])
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_timms_model_gives_timms_features(pool: Any, scaled: float | None) -> None:
    """Tokenizer, positions, class token, norms, LayerScale: all of them are in the features."""
    source = stirred(
        VisionTransformer(
            img_size=(16, 8),
            patch_size=4,
            embed_dim=16,
            depth=2,
            num_heads=2,
            init_values=scaled,
            global_pool="avg" if pool == "mean" else "token",
        )
    )
    model = build_model(replace(CLASSED, pool=pool), info("image"), seed=2).eval()
    started = start_from(model, source.state_dict(), "image")
    samples = drawn(3, 3, 16, 8)
    torch.testing.assert_close(
        features(model, samples), features(source, samples), rtol=1e-5, atol=1e-5
    )
    assert {one.how for one in started.placed} == {"loaded", "left", *(["folded"] * bool(scaled))}


def test_other_image_sizes_have_timms_positions() -> None:
    source = stirred(build_model(CLASSED, info("image", (3, 24, 24)), seed=1))
    model = build_model(CLASSED, info("image", (3, 16, 40)), seed=2)
    start_from(model, source.state_dict(), "image")
    wanted = resample_abs_pos_embed(source.pos_embed, [4, 10], num_prefix_tokens=1)
    assert torch.equal(model.get_parameter("pos_embed"), wanted)
    source.set_input_size((16, 40))  # timm's own way to another size
    samples = drawn(2, 3, 16, 40)
    assert torch.equal(features(model.eval(), samples), features(source, samples))


def test_other_patches_have_timms_kernel() -> None:
    source = stirred(build_model(SMALL, info("image"), seed=1))
    config = replace(SMALL, tokenizer=Tokenizer(patch=8))
    model = build_model(config, info("image"), seed=2)
    start_from(model, source.state_dict(), "image")
    kernel = source.patch_embed.proj.weight
    wanted = resample_patch_embed(kernel.detach(), [8, 8])
    assert torch.equal(model.get_parameter("patch_embed.proj.weight"), wanted)


@pytest.mark.parametrize("model_has", [False, True])
@pytest.mark.parametrize("source_has", [False, True])
def test_class_tokens_and_their_positions(source_has: bool, model_has: bool) -> None:
    configs = [replace(SMALL, class_token=one) for one in (source_has, model_has)]
    source, model = (build_model(one, info("image"), seed=3 + one.class_token) for one in configs)
    before: Any = model.state_dict()["pos_embed"].clone()
    start_from(model, source.state_dict(), "image")
    ours, theirs = (one.state_dict() for one in (model, source))
    assert torch.equal(ours["pos_embed"][:, model_has:], theirs["pos_embed"][:, source_has:])
    if model_has:
        first = theirs["pos_embed"] if source_has else before
        assert torch.equal(ours["pos_embed"][:, :1], first[:, :1])


def test_a_class_token_without_a_position_has_none_here() -> None:
    source: Any = build_model(CLASSED, info("image"), seed=1).state_dict()
    bare = source | {"pos_embed": source["pos_embed"][:, 1:]}
    model: Any = build_model(CLASSED, info("image"), seed=2)
    start_from(model, bare, "image")
    assert not model.pos_embed[:, 0].any()
    assert torch.equal(model.pos_embed[:, 1:], bare["pos_embed"])


def test_a_kernel_without_bias_has_none_here() -> None:
    source: Any = build_model(SMALL, info("image"), seed=1).state_dict()
    del source["patch_embed.proj.bias"]
    model: Any = build_model(SMALL, info("image"), seed=2)
    start_from(model, source, "image")
    assert not model.patch_embed.proj.bias.any()


def test_a_still_is_its_image() -> None:
    """A clip whose frames are alike has the tokens that the image has, at every time."""
    image = build_model(SMALL, info("image"), seed=1)
    video = build_model(SMALL, info("video"), seed=2)
    start_from(video, image.state_dict(), "video")
    still = drawn(2, 3, 16, 8)
    with torch.no_grad():
        tokens = image.patch_embed(still) + image.pos_embed  # type: ignore[operator]  # timm
        clip = still[:, :, None].expand(2, 3, 4, 16, 8)
        timed = video.patch_embed(clip) + video.pos_embed  # type: ignore[operator]  # timm
    torch.testing.assert_close(timed, tokens.repeat(1, 2, 1))


@pytest.mark.parametrize(
    ("old", "new"), [((2, 3, 4), (2, 6, 2)), ((2, 3, 4), (5, 3, 4)), ((4, 4, 4), (2, 2, 6))]
)
def test_positions_of_clips_are_interpolated_along_each_axis(old: Any, new: Any) -> None:
    """Of what varies along one axis alone, only that axis is interpolated."""
    for axis in range(3):
        line_ND = drawn(old[axis], 5)
        wanted = resample_abs_pos_embed(line_ND[None], [1, new[axis]], [1, old[axis]], 0)[0]
        shape = [1, 1, 1]
        shape[axis] = -1
        table = line_ND.view(*shape, 5).expand(*old, 5).reshape(1, -1, 5)
        found = positions.fitted(table, old, new).view(*new, 5)
        torch.testing.assert_close(found, wanted.view(*shape, 5).expand(*new, 5))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((3, 2, 4, 4), (3, 2, 4, 8)),
        ((1, 2, 4, 4), (1, 4, 8, 8)),
        ((1, 4, 4), (3, 8, 8)),
        ((1, 4, 4), (3, 2, 4, 4)),
    ],
)
def test_a_kernel_means_the_same_for_a_resized_patch(shape: Any, wanted: Any) -> None:
    """Channels alike, rows, columns and frames resized alike: the token stays what it was."""
    kernel = drawn(6, *shape).double()
    found = kernels.fitted(kernel, torch.Size((6, *wanted)))
    assert found.shape == (6, *wanted)
    constant = [value.flatten(1).sum(dim=1) for value in (kernel, found)]
    torch.testing.assert_close(*constant, rtol=1e-4, atol=1e-4)


def test_one_channel_of_three_is_their_sum() -> None:
    kernel = drawn(5, 3, 4, 4)
    found = kernels.fitted(kernel, torch.Size((5, 1, 4, 4)))
    torch.testing.assert_close(found, kernel.sum(dim=1, keepdim=True))
    assert kernels.fitted(kernel, kernel.shape) is kernel or torch.equal(
        kernels.fitted(kernel, kernel.shape), kernel
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "tones", "clips", "shapes"])
def test_what_is_pretrained_here_brings_its_tokens(source: str) -> None:
    """The target's blocks see what the encoder's saw."""
    config = PretrainConfig(DataConfig(source, limit=8), tokenizer=SMALL.tokenizer, epochs=1)
    run = MaskedAutoencoding(config, SMALL)
    list(run.epochs())
    info = load(config.data).info
    foreseen = whole_to_be(config, SMALL, info)
    whole = whole_from_bytes(whole_to_bytes(run.whole_weights()))
    assert {name: one.shape for name, one in whole.tensors.items()} == {
        name: one.shape for name, one in foreseen.tensors.items()
    }
    assert (whole.modality, whole.grid) == (foreseen.modality, foreseen.grid)
    model: Any = build_model(SMALL, info, seed=2)
    started = start_from(model, whole, info.modality)
    assert {one.name.split(".")[0] for one in started.placed if one.how == "left"} == {"head"}
    encoder, samples = run._network.encoder, drawn(2, *info.shape)
    with torch.no_grad():
        assert torch.equal(
            model.blocks(model._pos_embed(model.patch_embed(samples))),
            encoder.blocks(encoder._pos_embed(encoder.patch_embed(samples))),
        )
    assert torch.equal(model.fc_norm.weight, run._network.encoder_norm.weight)


@pytest.mark.slow
def test_a_probe_on_resampled_weights_goes_on_where_rounding_is_another() -> None:
    """Its state is without the frozen target, and tells it by the weights that it was made of."""
    data = load(DATA)
    other = replace(MODEL, tokenizer=Tokenizer(patch=2))
    source = build_model(other, data.info, seed=5).state_dict()
    config = config_of(train="probe")
    training = Training(config, data, {}, target_weights=source)
    assert training.started is not None
    assert training.started.resampled == {"pos_embed", "patch_embed.proj.weight"}
    list(training.epochs())
    state = training.capture()
    again = Training(config, data, {}, target_weights=source)
    again.restore(state)
    assert again._digests == training._digests
    elsewhere = dict(source) | {"pos_embed": source["pos_embed"] + 1e-3}
    with pytest.raises(ValueError, match=r"belongs to another training: digests\.frozen"):
        Training(config, data, {}, target_weights=elsewhere).restore(state)


def test_a_place_in_space_is_point_maes() -> None:
    source: Any = build_model(SMALL, info("point"), seed=1)
    renamed = {
        name.replace("patch_embed.position.", "pos_embed."): value
        for name, value in source.state_dict().items()
        if name.startswith(("blocks.", "patch_embed.position.", "norm."))
    }
    model: Any = build_model(SMALL, info("point"), seed=2)
    start_from(model, WholeWeights(renamed, "point"), "point")
    centres = drawn(2, 8, 3)
    assert torch.equal(model.patch_embed.position(centres), source.patch_embed.position(centres))

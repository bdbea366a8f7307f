"""What a target takes of the weights that it starts from, decided by names and shapes alone."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from m2pt.data.config import DataInfo, Modality
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.weights.blocks import WeightsError, block_weights
from m2pt.weights.deciding import Slots
from m2pt.weights.files import blocks_to_bytes
from m2pt.weights.positions import grid_of
from m2pt.weights.public import load_file
from m2pt.weights.start import decide, start_from
from m2pt.weights.started import Started
from m2pt.weights.whole import (
    WholeWeights,
    load_whole,
    whole_from_bytes,
    whole_of,
    whole_to_bytes,
    whole_weights,
)

SHAPES: dict[Modality, tuple[int, ...]] = {
    "image": (3, 16, 8),
    "audio": (1, 32, 16),
    "video": (3, 4, 16, 8),
    "point": (64, 3),
}
SMALL = ModelConfig(
    width=16, depth=2, heads=2, tokenizer=Tokenizer(patch=4, tubelet=2, groups=8, group_size=8)
)
CLASSED = replace(SMALL, class_token=True, pool="token")


def info(modality: Modality, shape: tuple[int, ...] | None = None) -> DataInfo:
    return DataInfo(modality, shape or SHAPES[modality], 2, ("a", "b"), "")


@cache
def built(modality: Modality, config: ModelConfig, shape: Any) -> torch.nn.Module:
    """Without values."""
    with torch.device("meta"):
        return build_model(config, info(modality, shape), seed=0)


def slots(modality: Modality, config: ModelConfig = SMALL, shape: Any = None) -> Slots:
    return Slots.of(built(modality, config, shape), modality)


def state(modality: Modality, config: ModelConfig = SMALL, shape: Any = None) -> dict[str, Tensor]:
    """Of a model that the weights could come from; without values."""
    return dict(built(modality, config, shape).state_dict())


def decided(here: Slots, tensors: dict[str, Tensor] | WholeWeights, **known: Any) -> Started:
    moves, unused = decide(here, replace(WholeWeights.of(tensors), **known))
    return Started(tuple(move.placed for move in moves), unused)


def told(started: Started, name: str) -> tuple[str, str]:
    (found,) = (one for one in started.placed if one.name == name)
    return found.how, found.told


KERNEL, POSITIONS = "patch_embed.proj.weight", "pos_embed"


@pytest.mark.parametrize("modality", list(SHAPES))
def test_what_fits_is_loaded_and_a_head_is_not(modality: Modality) -> None:
    started = decided(slots(modality), state(modality))
    left = {one.name for one in started.placed if one.how != "loaded"}
    assert left == {"head.weight", "head.bias"}
    assert {one.name for one in started.unused} == left
    assert started.summary() == (
        "taken: blocks, norms, final norm, tokenizer, positions; not taken: head"
    )


@pytest.mark.parametrize("modality", list(SHAPES))
def test_of_blocks_alone_nothing_else_is_taken(modality: Modality) -> None:
    blocks = WholeWeights(state(modality)).blocks
    started = decided(slots(modality), blocks)
    assert {one.name for one in started.placed if one.how == "loaded"} == set(blocks)
    assert started.summary() == (
        "taken: blocks; not taken: norms, final norm, tokenizer, positions "
        "(the weights are those of blocks alone), head"
    )


@pytest.mark.parametrize(
    ("there", "here", "why"),
    [
        ("image", "audio", "another modality (image; here audio)"),
        ("audio", "image", "another modality (audio; here image)"),
        ("video", "image", "another modality (video; here image)"),
        ("audio", "video", "another modality (audio; here video)"),
        ("point", "image", "another modality (point; here image)"),
        ("image", "point", "another modality (image; here point)"),
    ],
)
def test_a_tokenizer_of_another_modality_is_not_taken(
    there: Modality, here: Modality, why: str
) -> None:
    for known in ({}, {"modality": there}):
        started = decided(slots(here), state(there), **known)
        names = [one.name for one in started.placed if one.name.startswith("patch_embed.")]
        for name in (*names, *((POSITIONS,) if here != "point" else ())):
            how, because = told(started, name)
            assert how == "left"
            assert why in because or "has none" in because
        assert any(why in line for line in started.lines())
        assert told(started, "blocks.0.norm1.weight") == ("loaded", "")


@pytest.mark.parametrize(
    ("source", "shape", "config", "kernel", "positions"),
    [
        ("image", (3, 32, 32), CLASSED, "", "8 x 8 -> 4 x 2"),
        ("image", (1, 16, 8), SMALL, "1 -> 3 channels", ""),
        (
            "image",
            (3, 32, 32),
            replace(SMALL, tokenizer=Tokenizer(patch=8)),
            "8 x 8 -> 4 x 4",
            "4 x 4 -> 4 x 2",
        ),
    ],
)
def test_sizes_that_differ_are_resampled(
    source: Modality, shape: Any, config: ModelConfig, kernel: str, positions: str
) -> None:
    started = decided(slots("image"), state(source, config, shape), modality=source)
    for name, change in ((KERNEL, kernel), (POSITIONS, positions)):
        assert told(started, name) == (("resampled", change) if change else ("loaded", ""))
    assert started.resampled == {
        name for name, change in ((KERNEL, kernel), (POSITIONS, positions)) if change
    }


def test_an_images_kernel_and_positions_become_a_clips() -> None:
    started = decided(slots("video"), state("image", shape=(3, 32, 32)))
    assert told(started, KERNEL) == ("resampled", "spread over 2 frames")
    assert told(started, POSITIONS) == ("resampled", "8 x 8 -> 2 x 4 x 2")


@pytest.mark.parametrize(
    ("tokens", "like", "modality", "grid"),
    [
        (196, (4, 2), "image", (14, 14)),
        (8, (4, 2), "image", (4, 2)),
        (195, (4, 2), "image", None),
        (512, (32, 8), "audio", (64, 8)),
        (512, (10, 4), "audio", (64, 8)),
        (1213, (32, 8), "audio", None),
        (1568, (8, 7, 7), "video", (8, 14, 14)),
        (3136, (8, 14, 14), "video", (16, 14, 14)),
        (32, (2, 4, 4), "video", (2, 4, 4)),
        (72, (2, 4, 4), "video", (2, 6, 6)),
        (160, (2, 8, 4), "video", (5, 8, 4)),
        (128, (2, 4, 4), "video", None),  # 2 x 8 x 8, or 8 x 4 x 4
        (0, (4, 2), "image", None),
    ],
)
def test_a_number_of_positions_tells_a_grid_or_it_does_not(
    tokens: int, like: Any, modality: Modality, grid: Any
) -> None:
    assert grid_of(tokens, like, modality, 16) == grid


def test_a_known_grid_is_believed_and_a_wrong_one_is_not() -> None:
    source = state("audio", CLASSED, (1, 64, 8))  # 16 x 2, of which 32 say nothing at patch 4
    unknown = decided(slots("audio", shape=(1, 32, 32)), source)
    assert told(unknown, POSITIONS)[0] == "resampled"  # 128 bands are supposed
    known = decided(slots("audio", shape=(1, 32, 32)), source, modality="audio", grid=(16, 2))
    assert told(known, POSITIONS) == ("resampled", "16 x 2 -> 8 x 8")
    for grid in ((5, 5), (2, 4, 4)):
        wrong = decided(slots("audio", shape=(1, 32, 32)), source, modality="audio", grid=grid)
        assert told(wrong, POSITIONS) == ("left", "the grid of the source's 33 cannot be told")


@pytest.mark.parametrize(
    ("tokens", "extra", "change"),
    [
        (50, {}, "7 x 7 -> 4 x 2"),  # of the class token, too
        (49, {}, "7 x 7 -> 4 x 2"),
        (51, {"dist_token": 1}, "7 x 7 -> 4 x 2"),
        (50, {"reg_token": 4}, "7 x 7 -> 4 x 2"),
        (54, {"reg_token": 4}, "7 x 7 -> 4 x 2"),
        (60, {}, None),
    ],
)
def test_positions_of_prefix_tokens_are_told_apart(
    tokens: int, extra: dict[str, int], change: str | None
) -> None:
    source = state("image", CLASSED) | {POSITIONS: torch.empty(1, tokens, 16)}
    source |= {name: torch.empty(1, count, 16) for name, count in extra.items()}
    how, told_of = told(decided(slots("image"), source), POSITIONS)
    assert (how, told_of) == ("resampled", change) if change else how == "left"


def test_fixed_positions_stay_and_absent_ones_are_named() -> None:
    fixed = decided(slots("image", replace(SMALL, positions="fixed")), state("image"))
    assert told(fixed, POSITIONS) == ("left", "they are fixed (model.positions)")
    assert ("pos_embed", "the model's positions are fixed (model.positions)") in {
        (one.name, one.why) for one in fixed.unused
    }
    without = {name: value for name, value in state("image").items() if name != POSITIONS}
    assert told(decided(slots("image"), without), POSITIONS)[0] == "left"


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_the_final_norm_goes_where_the_model_has_it(pool: Any) -> None:
    here = slots("image", replace(CLASSED, pool=pool))
    own, other = ("fc_norm", "norm") if pool == "mean" else ("norm", "fc_norm")
    source = state("image", CLASSED)
    source |= {f"{other}.weight": torch.empty(16), f"{other}.bias": torch.empty(16)}
    for name in (f"{own}.weight", f"{own}.bias"):
        source.pop(name, None)
    started = decided(here, source)
    assert told(started, f"{own}.weight") == ("loaded", f"the source's {other}")


def test_the_rest_is_named() -> None:
    source = state("image", CLASSED)
    extra = ("norm_pre.weight", "reg_token", "mask_token", "blocks.0.attn.q_norm.weight")
    source |= {name: torch.empty(1, 4, 16) for name in extra}
    started = decided(slots("image"), source)
    why = {one.name: one.why for one in started.unused}
    assert set(why) == {*extra, "cls_token", "norm.weight", "norm.bias", *_HEAD} - {
        "norm.weight",
        "norm.bias",
    }
    assert why["norm_pre.weight"] == "the model does not normalise before its blocks"
    names = "blocks (attn.q_norm.weight), cls_token, reg_token, mask_token"
    assert f"unused     {names}: the model has no such thing" in started.lines()


_HEAD = ("head.weight", "head.bias")


def test_another_pointnet_is_left_whole_and_its_places_are_taken() -> None:
    source = state("point")
    source["patch_embed.lift.0.weight"] = torch.empty(128, 3)
    started = decided(slots("point"), source)
    assert told(started, "patch_embed.project.weight") == (
        "left",
        "the source's PointNet is another one",
    )
    assert told(started, "patch_embed.position.0.weight") == ("loaded", "")
    theirs = {
        name.replace("patch_embed.position.", "pos_embed."): value
        for name, value in state("point").items()
        if "position" in name or name.startswith("blocks.")
    }
    theirs["encoder.first_conv.0.weight"] = torch.empty(128, 3, 1)
    started = decided(slots("point"), theirs)  # as Point-MAE calls them
    assert told(started, "patch_embed.position.2.bias") == ("loaded", "the source's pos_embed.2")
    assert told(started, "patch_embed.lift.0.bias")[0] == "left"


@pytest.mark.parametrize(
    ("kernel", "why"),
    [((16, 48), "a kernel of patches is 16 x 3 x 4 x 4"), ((8, 3, 4, 4), "is 8 x 3 x 4 x 4")],
)
def test_what_is_no_kernel_is_left(kernel: tuple[int, ...], why: str) -> None:
    source = state("image") | {KERNEL: torch.empty(kernel)}
    how, because = told(decided(slots("image"), source), KERNEL)
    assert (how, why in because) == ("left", True)


@pytest.mark.parametrize(
    ("there", "why"), [("video", "and it is of images"), ("audio", "which have one channel")]
)
def test_a_kernel_that_was_never_trained_is_left(there: Modality, why: str) -> None:
    """M2PT's own zoo has an image's beside the blocks of every modality."""
    source = state("image", CLASSED)
    how, because = told(decided(slots(there), source, modality=there), KERNEL)
    assert (how, why in because) == ("left", True)
    started = decided(slots("point"), source, modality="point")
    assert told(started, "patch_embed.lift.0.weight")[1] == "the source's PointNet is another one"


def test_norms_that_follow_are_not_taken_for_those_before() -> None:
    started = decided(slots("image"), state("image"), post_norm=True)
    assert told(started, "blocks.0.norm1.weight")[0] == "left"
    assert {one.why for one in started.unused if "norm" in one.name} == {
        "in the source they come after attention and MLP"
    }


def test_whole_weights_as_bytes_and_back() -> None:
    model = build_model(SMALL, info("image"), seed=3)
    whole = whole_weights(model.state_dict(), "here", "image", (4, 2), post_norm=True)
    assert whole.unused == ("head.weight", "head.bias")
    started = decided(slots("image"), whole, post_norm=False)
    assert [one.name for one in started.unused] == list(whole.unused)
    data = whole_to_bytes(whole)
    assert data == whole_to_bytes(
        replace(whole, tensors=dict(sorted(whole.tensors.items(), reverse=True)))
    )
    back = whole_from_bytes(data)
    assert (back.modality, back.grid, back.post_norm) == ("image", (4, 2), True)
    assert back.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(value, whole.tensors[name]) for name, value in back.tensors.items())
    alone = WholeWeights(block_weights(model), "image", (4, 2))
    assert whole_to_bytes(alone) == blocks_to_bytes(model)
    assert whole_from_bytes(whole_to_bytes(alone)).blocks_alone


def test_whole_weights_that_are_not_sound_are_refused() -> None:
    found = dict(build_model(SMALL, info("image"), seed=3).state_dict())
    found["pos_embed"] = found["pos_embed"].clone().fill_(float("nan"))
    with pytest.raises(WeightsError, match="here: pos_embed holds values that are NaN or infinite"):
        whole_weights(found, "here")
    found["pos_embed"] = torch.zeros(1, 8, 16, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"pos_embed is torch\.int8; weights are of"):
        whole_weights(found, "here")
    with pytest.raises(WeightsError, match="damaged safetensors"):
        whole_from_bytes(b"nothing")


def test_nothing_is_copied_where_blocks_do_not_fit() -> None:
    model = build_model(SMALL, info("image"), seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = dict(build_model(replace(SMALL, depth=1), info("image"), seed=1).state_dict())
    with pytest.raises(ValueError, match=r"blocks.1.attn.qkv.weight, .* are not in the weights"):
        start_from(model, other, "image")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_patches_of_ast_are_turned_and_its_positions_left(tmp_path: Path) -> None:
    tensors = dict(build_model(CLASSED, info("audio"), seed=0).state_dict())
    kernel = tensors["patch_embed.proj.weight"]
    of_ast = {f"v.{name}": value for name, value in tensors.items()}
    save_file({**of_ast, "v.dist_token": torch.zeros(1, 1, 16)}, tmp_path / "ast.safetensors")
    save_file(tensors, tmp_path / "mae.safetensors")
    turned = whole_of(load_file(tmp_path / "ast.safetensors"))
    assert turned.tensors["patch_embed.proj.weight"].equal(kernel.transpose(2, 3))
    assert "pos_embed" not in turned.tensors
    assert "pos_embed" in turned.unused
    plain = whole_of(load_file(tmp_path / "mae.safetensors"))
    assert plain.tensors["patch_embed.proj.weight"].equal(kernel)
    assert "pos_embed" in plain.tensors


@pytest.mark.parametrize(
    "beside",
    [
        {"dist_token": (1, 1, 16), "patch_embed.proj.weight": (16, 1, 4, 4)},  # AST's, turned
        {"encoder.first_conv.0.weight": (8, 3, 1), "pos_embed.0.weight": (8, 3)},  # Point-MAE's
    ],
)
def test_a_trial_starts_from_just_what_was_stored(
    tmp_path: Path, beside: dict[str, tuple[int, ...]]
) -> None:
    model = build_model(SMALL, info("image"), seed=0)
    drawn = {name: torch.randn(shape) for name, shape in beside.items()}
    whole = whole_weights({**block_weights(model), **drawn}, "here")
    file = tmp_path / "cache-of-audiomae"  # the name of a place says nothing of a blob
    file.write_bytes(whole_to_bytes(whole))
    back = load_whole(file)
    assert back.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(value, whole.tensors[name]) for name, value in back.tensors.items())
    assert (back.modality, back.grid, back.post_norm) == (None, None, False)
    # also where a file of ours is named as weights
    again = whole_of(load_file(file)).tensors
    assert all(torch.equal(value, whole.tensors[name]) for name, value in again.items())

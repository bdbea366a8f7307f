"""Public weights without their models: which layout is seen, what is refused, where it is from."""

import hashlib
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from m2pt.weights import Weights, load
from m2pt.weights.address import FromTimm, InBucket, OnDisk, OnHub, parse
from m2pt.weights.blocks import WeightsError
from m2pt.weights.checkpoints import heads_of, origin_of
from m2pt.weights.described import described
from m2pt.weights.layouts import converted
from m2pt.weights.naming.table import LAYOUTS, layout_named
from m2pt.weights.provenance import Origin, Provenance, warnings

State = dict[str, Tensor]
D = 4


def linears(prefix: str, *names: str, depth: int = 1) -> State:
    """A block or several, of weights alone: qkv or q, k and v, then proj, fc1 and fc2."""
    *attention, proj, fc1, fc2 = names
    rows = {1: 3 * D, 3: D}[len(attention)]
    shapes = {**dict.fromkeys(attention, (rows, D)), proj: (D, D), fc1: (2 * D, D), fc2: (D, 2 * D)}
    return {
        f"{prefix.format(i=i)}{name}.weight": torch.ones(shape)
        for i in range(depth)
        for name, shape in shapes.items()
    }


TIMM = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
HF = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
VIT = (*HF, "attention.output.dense", "intermediate.dense", "output.dense")


def test_a_suffix_of_another_name_is_not_mistaken_for_it() -> None:
    state = linears("encoder.layer.{i}.", *VIT)
    state["encoder.layer.0.attention.output.dense.weight"] = torch.full((D, D), 2.0)
    found = converted(state, "here")
    assert found.state["blocks.0.attn.proj.weight"].flatten().tolist() == [2.0] * D * D
    assert found.state["blocks.0.mlp.fc2.weight"].shape == (D, 2 * D)


def test_a_decoder_with_blocks_is_left_aside_and_told() -> None:
    state = linears("encoder.blocks.{i}.", *TIMM) | linears("decoder.blocks.{i}.", *TIMM, depth=2)
    found = converted(state, "here")
    assert len(found.state) == 4
    assert len(found.unused) == 8
    assert all(name.startswith("decoder.") for name in found.unused)


def test_a_key_without_a_bias_has_one_of_zeros() -> None:
    state = linears("blocks.{i}.", *TIMM)
    state |= {"blocks.0.attn.q_bias": torch.ones(D), "blocks.0.attn.v_bias": torch.ones(D)}
    found = converted(state, "here")
    assert found.layout.name == "videomae"
    assert found.state["blocks.0.attn.qkv.bias"].tolist() == [1.0] * D + [0.0] * D + [1.0] * D
    assert converted(state | {"cls_token": torch.ones(1, 1, D)}, "here").layout.name == "beit"


def test_the_tokenizer_of_points_keeps_its_names() -> None:
    state = linears("MAE_encoder.blocks.blocks.{i}.", *TIMM) | {
        "MAE_encoder.encoder.first_conv.1.num_batches_tracked": torch.tensor(3),
        "MAE_encoder.encoder.first_conv.0.weight": torch.ones(2, 3, 1, dtype=torch.half),
        "MAE_encoder.pos_embed.0.bias": torch.ones(2),
        "mask_token": torch.ones(1, 1, D),
    }
    found = converted({"base_model": {f"module.{name}": t for name, t in state.items()}}, "here")
    assert found.layout.name == "point-mae"
    assert found.unused == ("module.mask_token",)
    assert found.state["encoder.first_conv.0.weight"].dtype == torch.float32
    assert {"encoder.first_conv.1.num_batches_tracked", "pos_embed.0.bias"} <= found.state.keys()


def test_one_of_several_trunks_is_named() -> None:
    names = ("attn.in_proj", "attn.out_proj", "mlp.fc1", "mlp.fc2")
    state = linears("modality_trunks.audio.blocks.{i}.", *names)
    state |= linears("modality_trunks.imu.blocks.{i}.", *names, depth=2)
    state = {name.replace("in_proj.weight", "in_proj_weight"): t for name, t in state.items()}
    with pytest.raises(WeightsError, match=r"2 trunks \(audio, imu\).*layout: imagebind:audio"):
        converted(state, "here")
    assert len(converted(state, "here", "imagebind:imu").state) == 8
    with pytest.raises(WeightsError, match="no 'depth' among its parts, which are audio, imu"):
        converted(state, "here", "imagebind:depth")


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("hf-vitt", "'hf-vitt' is none of auto, .*did you mean 'hf-vit'"),
        ("timm:audio", r"names a part, .*\(hf-siglip, hf-clip, imagebind, open-clip\)"),
        ("imagebind:", "names a part"),
        ("auto:audio", "is none of auto"),
    ],
)
def test_layouts_that_are_none(layout: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^layout: .*{told}"):
        layout_named(layout)


def test_every_layout_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    table = page.partition("## Layouts")[2].partition("## What is refused")[0]
    assert set(LAYOUTS) <= set(re.findall(r"`([a-z0-9-]+)`", table))


EVA = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.fc1_g", "mlp.fc2")
SWIN = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
TWO = linears("encoder.layer.{i}.", *VIT) | linears("layers.0.blocks.{i}.", *SWIN)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (linears("blocks.{i}.", *EVA), "SwiGLU"),
        (linears("point_encoder.visual.blocks.{i}.", *EVA), "SwiGLU"),
        (linears("encoder.layer.{i}.", *VIT[:4], "mlp.weights_in", "mlp.weights_out"), "SwiGLU"),
        (linears("layers.0.blocks.{i}.", *SWIN), "Swin"),
        (linears("audio_branch.layers.1.blocks.{i}.", *SWIN), "Swin"),
        (TWO, "Swin(?=.* layout: hf-vit$)"),  # as CLAP: which one is meant?
        (
            linears("ppat.transformer.layers.{i}.", "0.fn.to_qkv", "0.fn.to_out.0", "a", "b"),
            "OpenShape",
        ),
    ],
)
def test_what_cannot_serve_is_refused_with_the_reason(state: State, told: str) -> None:
    with pytest.raises(WeightsError, match=f"^here: .*{told}.*take a checkpoint"):
        converted(state, "here")


def without(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("state", "layout", "told"),
    [
        (linears("blocks.{i}.", *TIMM), "hf-vit", "no block weights of layout 'hf-vit'"),
        (
            without(linears("encoder.layer.{i}.", *VIT, depth=2), "1.attention.attention.key"),
            "auto",
            "blocks.1.attn.qkv.weight cannot be joined: k not there",
        ),
        (
            linears("encoder.layer.{i}.", *VIT)
            | {"encoder.layer.0.attention.attention.key.weight": torch.ones(2, D)},
            "auto",
            r"q \(4, 4\), k \(2, 4\), v \(4, 4\); query, key and value must be of one width",
        ),
        (
            linears("blocks.{i}.", *TIMM)
            | {"blocks.0.attn.qkv.bias": torch.ones(12), "blocks.0.attn.q_bias": torch.ones(4)},
            "auto",
            "blocks.0.attn.qkv.bias whole and in parts",
        ),
        (
            linears("blocks.{i}.", *TIMM) | {"norm.weight": torch.tensor([1.0, float("nan")])},
            "auto",
            "norm.weight holds 1 of 2 values that are NaN",
        ),
    ],
)
def test_blocks_that_are_unsound(state: State, layout: str, told: str) -> None:
    with pytest.raises(WeightsError, match=f"^here: .*{told}"):
        converted(state, "here", layout)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As MAE's training saves: with its arguments and the optimiser beside the model."""
    state: dict[str, object] = dict(linears("blocks.{i}.", *TIMM, depth=2))
    state |= {"cls_token": torch.ones(D), "head.weight": torch.ones(3, D)}
    path = tmp_path_factory.mktemp("weights") / "mae_pretrain_vit_base.pth"
    torch.save({"model": state, "optimizer": {}, "args": Namespace(lr=0.1)}, path)
    return path


def test_a_checkpoint_of_a_training_with_its_arguments(saved: Path) -> None:
    weights = load(saved.as_uri())
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    found = weights.provenance
    assert (found.uri, found.sha256, found.layout) == (saved.as_uri(), digest, "timm")
    assert (found.dim, found.depth, found.hidden, found.heads) == (D, 2, 2 * D, None)
    assert (found.origin.modality, found.origin.licence) == ("image", "CC-BY-NC-4.0")
    assert weights.state_dict()["cls_token"].shape == (1, 1, D)
    assert weights.unused == ("head.weight",)
    assert {"pos_embed", "norm.weight", "blocks.1.norm1.weight"} <= set(weights.missing)
    assert "cls_token" not in weights.missing
    assert (len(weights.blocks()), weights.metadata) == (8, {})
    with pytest.raises(WeightsError, match="its sha256 is"):
        load(str(saved), sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"s3://b/k: fetch it to a file first"):
        load("s3://b/k")


def test_what_a_file_says_of_itself_is_kept(tmp_path: Path) -> None:
    save_file(linears("blocks.{i}.", *TIMM), tmp_path / "a.safetensors", {"m2pt": "{}"})
    assert load(str(tmp_path / "a.safetensors")).metadata == {"m2pt": "{}"}


def test_layer_scale_is_kept_in_the_state_and_folded_into_the_blocks(tmp_path: Path) -> None:
    state = linears("blocks.{i}.", *TIMM) | {
        "blocks.0.attn.proj.bias": torch.ones(D),
        "blocks.0.ls1.gamma": torch.arange(D).float(),
    }
    torch.save(state, tmp_path / "scaled.pth")
    weights = load(str(tmp_path / "scaled.pth"))
    assert weights.provenance.layer_scale
    assert weights.state_dict()["blocks.0.attn.proj.bias"].tolist() == [1.0] * D
    blocks = weights.blocks()
    assert blocks["blocks.0.attn.proj.bias"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert blocks["blocks.0.attn.proj.weight"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert "blocks.0.ls1.gamma" not in blocks
    torch.save(state | {"blocks.0.ls2.gamma": torch.ones(1)}, tmp_path / "wrong.pth")
    with pytest.raises(WeightsError, match=r"ls2.gamma has shape \(1,\), but .* has 4 rows"):
        load(str(tmp_path / "wrong.pth"))


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("hf://facebook/vit-mae-base", OnHub("facebook/vit-mae-base")),
        ("hf://a/b@refs-1/deep/c.pt", OnHub("a/b", "refs-1", "deep/c.pt")),
        ("timm://vit_base_patch16_224.mae", FromTimm("vit_base_patch16_224.mae")),
        ("s3://bucket/key.pth", InBucket("s3://bucket/key.pth")),
        ("file:///a%20b.pth", OnDisk(Path("/a b.pth"))),
        ("weights/a.pth", OnDisk(Path("weights/a.pth"))),
    ],
)
def test_addresses(uri: str, address: object) -> None:
    assert parse(uri) == address


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("hf://name", "written hf://OWNER/NAME"),
        ("hf://a/b@", "written hf://OWNER/NAME"),
        ("hf://a/b/../c", "written hf://OWNER/NAME"),
        ("timm://", "written timm://MODEL"),
        ("s3://bucket", "written s3://BUCKET/KEY"),
        ("file://a/b", "three slashes"),
        ("https://a:secret@a/b", "^https://... is of a kind that is not read[^@]*$"),
        ("s3://key:secret@bucket/a.pth", "^an s3:// address carries no key[^@]*$"),
        ("s3://bucket/a.pth?X-Amz-Signature=secret", "carries no key[^?]*$"),
    ],
)
def test_addresses_that_are_none(uri: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(uri)


@pytest.mark.parametrize(
    ("uri", "modality", "supervised", "involves"),
    [
        ("hf://facebook/vit-mae-base", "image", False, ()),
        ("timm://vit_base_patch16_224.mae", "image", False, ()),
        ("hf://gaunernst/vit_base_patch16_1024_128.audiomae_as2m", "audio", False, ()),
        ("hf://gaunernst/vit_base_patch16_1024_128.audiomae_as2m_ft_as20k", "audio", True, ()),
        ("hf://MCG-NJU/videomae-base", "video", False, ()),
        ("hf://MCG-NJU/videomae-base-finetuned-kinetics", "video", True, ()),
        ("hf://MIT/ast-finetuned-audioset-10-10-0.4593", "audio", True, ("image",)),
        ("/data/audioset_10_10_0.4593.pth", "audio", True, ("image",)),
        ("/data/Meta-Transformer_base_patch16_encoder.pth", "image", True, ("text",)),
        ("hf://openai/clip-vit-base-patch16", "image", True, ("text",)),
        ("weights/mae_pretrain_vit_base.pth", "image", False, ()),  # as the presets name them
        ("weights/audiomae_pretrain_vit_base.pth", "audio", False, ()),
        ("weights/videomae_pretrain_vit_base.pth", "video", False, ()),
        ("weights/pointmae_768_epoch_300.pth", "point", None, ()),
        ("hf://timm/vit_base_patch16_224.mae@main/model.safetensors", "image", False, ()),
        ("/data/mine.pth", None, None, ()),
    ],
)
def test_what_is_known_of_public_checkpoints(
    uri: str, modality: str, supervised: bool, involves: tuple[str, ...]
) -> None:
    found = origin_of(uri)
    assert (found.modality, found.supervised, found.involves) == (modality, supervised, involves)


def test_a_trunk_has_the_modality_of_its_own() -> None:
    audio = origin_of("imagebind_huge.pth", "imagebind", "audio")
    assert (audio.modality, audio.involves) == ("audio", ("image", "text"))
    assert origin_of("renamed.pth", "imagebind", "vision").involves == ("text",)
    text = origin_of("hf://openai/clip-vit-large-patch14", "hf-clip", "text")
    assert (text.modality, text.involves) == ("text", ("image",))
    assert (heads_of("timm://vit_small_patch16_224.dino", 384), heads_of("vit_base", 16)) == (
        6,
        None,
    )


def provenance(**origin: object) -> Provenance:
    return Provenance("here", "f" * 64, "timm", 4, 2, 8, Origin().stated(**origin))


@pytest.mark.parametrize(
    ("origin", "target", "told"),
    [
        ({"modality": "audio"}, "image", ()),
        ({"licence": "MIT"}, "image", ("its modality is not known.*state its `provenance`",)),
        ({"modality": "image"}, "image", ("the target's own .image.*ordinary transfer",)),
        (
            {"modality": "audio", "involves": ("image",), "lineage": "DeiT"},
            "image",
            (r"target's own modality .image. had a part in it .DeiT.",),
        ),
        (
            {"modality": "audio", "involves": ("image",), "lineage": "DeiT"},
            "point",
            (r"image data had a part in it \(DeiT\): a gain is not that of audio data alone",),
        ),
        ({"modality": "video", "licence": "CC-BY-NC-4.0"}, "image", ("forbids commercial",)),
        ({"modality": "video", "licence": "non-commercial"}, "image", ("forbids commercial",)),
        ({"modality": "video", "licence": "CC-BY-4.0"}, "image", ()),
    ],
)
def test_warnings(origin: dict[str, object], target: str, told: tuple[str, ...]) -> None:
    found = warnings(provenance(**origin), target)
    assert len(found) == len(told)
    assert all(re.search(pattern, line) for pattern, line in zip(told, found, strict=True))


def test_the_target_s_own_weights_are_not_warned_about_as_lent() -> None:
    found = provenance(modality="image", involves=("text",), licence="CC-BY-NC-4.0")
    assert len(warnings(found, None)) == 1
    eight = replace(found, heads=8, norm="post")
    assert [line[:9] for line in warnings(eight, None, 4)] == [
        "its licen",
        "its atten",
        "its block",
    ]


def test_provenance_is_plain_json_and_reads_what_newer_versions_say() -> None:
    found = provenance(modality="audio", supervised=False, involves=("image",))
    said = found.as_dict()
    assert said["supervised"] is False
    assert "licence" not in said
    assert Provenance.from_dict({**said, "of_tomorrow": 1}) == found
    with pytest.raises(ValueError, match="no provenance"):
        Provenance.from_dict({"uri": "here"})


def test_a_config_counts_where_it_is_of_these_weights() -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert described(config, None, 8, 2).heads == 4
    assert described(config, None, 16, 2).heads is None
    both = {"vision_config": config, "text_config": {**config, "num_attention_heads": 2}}
    assert (described(both, None, 8, 2).heads, described(both, "text", 8, 2).heads) == (4, 2)
    stable = {**config, "do_stable_layer_norm": True, "hidden_act": "gelu_new"}
    assert described(stable, None, 8, 2) == (4, "pre", "gelu_tanh")


def cached(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A hub's cache with one model, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = folder / "models--facebook--vit-mae-base"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots" / commit).mkdir(parents=True)
    return model / "snapshots" / commit


def test_the_cache_of_the_hub_serves_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = cached(monkeypatch, tmp_path)
    torch.save(linears("vit.encoder.layer.{i}.", *VIT), snapshot / "pytorch_model.bin")
    (snapshot / "config.json").write_text(
        f'{{"hidden_size": {D}, "num_hidden_layers": 1, "num_attention_heads": 2}}'
    )
    weights: Weights = load("hf://facebook/vit-mae-base")
    found = weights.provenance
    assert (found.layout, found.heads, found.revision) == ("hf-vit", 2, snapshot.name)
    assert found.origin.licence == "CC-BY-NC-4.0"
    assert load("hf://facebook/vit-mae-base@main/pytorch_model.bin").provenance.heads == 2
    for uri in ("hf://facebook/vit-mae-base/gone.bin", "hf://other/model"):
        with pytest.raises(WeightsError, match=f"^{uri}: it is not in the local cache, and the"):
            load(uri)


def test_models_that_timm_does_not_know() -> None:
    with pytest.raises(WeightsError, match=r"knows no such model; did you mean 'vit_base_patch16_"):
        load("timm://vit_base_patch16_225")
    with pytest.raises(WeightsError, match=r"no weights of that name; .*vit_base_patch16_224.mae"):
        load("timm://vit_base_patch16_224.maee")

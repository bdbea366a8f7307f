"""Golden tests: blocks of original architectures, saved in their own format, loaded, compared.

Each converted block must compute what the original's does, and with keys and values swapped it must
not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from m2pt.weights import load
from m2pt.weights.blocks import WeightsError
from tests.numerics.golden import DEPTH, DIM, HEADS, HIDDEN, Blocks, Golden, check, randomised
from tests.numerics.originals import (
    ClipBlock,
    ImageBindBlock,
    PointAttention,
    PreBlock,
    VideoMaeAttention,
)


def of(
    make: Callable[[], tuple[nn.Module, Blocks]],
    wrap: Callable[[dict[str, Any]], Any] = lambda state: state,
) -> Callable[[Path], tuple[Path, Blocks]]:
    """Saves a model's state as a torch file, in whatever a project puts around it."""

    def save(folder: Path) -> tuple[Path, Blocks]:
        model, blocks = make()
        randomised(model)
        torch.save(wrap(dict(model.state_dict())), folder / "weights.pth")
        return folder / "weights.pth", blocks

    return save


def tree(parts: dict[str, nn.Module]) -> nn.Module:
    """A module in which `a.b.c` is where a dictionary says it is."""
    root = nn.Module()
    for path, module in parts.items():
        *above, last = path.split(".")
        place = root
        for name in above:
            if not hasattr(place, name):
                place.add_module(name, nn.Module())
            place = getattr(place, name)
        place.add_module(last, module)
    return root


def stack(make: Callable[[], nn.Module], at: str, **others: nn.Module) -> Any:
    """Blocks under `at`, beside others (`__` stands for a dot)."""

    def build() -> tuple[nn.Module, Blocks]:
        blocks = nn.ModuleList([make() for _ in range(DEPTH)])
        rest = {name.replace("__", "."): module for name, module in others.items()}
        return tree({at: blocks, **rest}), list(blocks)

    return build


def timm_block(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import Block

    block: nn.Module = Block(DIM, HEADS, HIDDEN / DIM, qkv_bias=True, **options)
    return block


def timm_model(kind: str, **options: Any) -> Callable[[], tuple[nn.Module, Blocks]]:
    from timm.models import beit, eva, vision_transformer

    classes = {"vit": vision_transformer.VisionTransformer, "beit": beit.Beit, "eva": eva.Eva}

    def build() -> tuple[nn.Module, Blocks]:
        model = classes[kind](
            img_size=8, patch_size=4, embed_dim=DIM, depth=DEPTH, num_heads=HEADS,
            mlp_ratio=HIDDEN / DIM, num_classes=3, **options,
        )  # fmt: skip
        return model, list(model.blocks)

    return build


def torchvision_model() -> tuple[nn.Module, Blocks]:
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(8, 4, DEPTH, HEADS, DIM, HIDDEN, num_classes=3)
    return model, list(model.encoder.layers)


def torch_encoder() -> tuple[nn.Module, Blocks]:
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True
    )
    model = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
    return model, list(model.layers)


def videomae_block() -> nn.Module:
    return PreBlock(VideoMaeAttention(DIM, HEADS), DIM, HIDDEN)


def point_block() -> nn.Module:
    return PreBlock(PointAttention(DIM, HEADS), DIM, HIDDEN)


def imagebind() -> tuple[nn.Module, Blocks]:
    audio = nn.ModuleList([ImageBindBlock(DIM, HEADS, HIDDEN) for _ in range(DEPTH)])
    depth = nn.ModuleList([ImageBindBlock(8, 2, 16, extra=True) for _ in range(DEPTH)])
    stem = nn.Sequential(nn.LayerNorm(DIM))
    model = tree(
        {
            "modality_trunks.audio.blocks": audio,
            "modality_trunks.depth.blocks": depth,
            "modality_trunks.audio.pre_transformer_layer": stem,
        }
    )
    return model, list(audio)


def sequence() -> tuple[nn.Module, Blocks]:
    model = nn.Sequential(*(timm_block() for _ in range(DEPTH)))
    return model, list(model)


def swin_decoder() -> nn.Module:
    """What of AudioMAE's decoder bears names like an encoder's."""
    return nn.ModuleList([tree({"attn.qkv": nn.Linear(8, 24), "mlp.fc1": nn.Linear(8, 16)})])


def mae() -> tuple[nn.Module, Blocks]:
    model, blocks = stack(
        timm_block, "blocks", norm=nn.LayerNorm(DIM), decoder_blocks=swin_decoder(),
        decoder_embed=nn.Linear(DIM, 8), patch_embed__proj=nn.Conv2d(1, DIM, 4),
    )()  # fmt: skip
    model.register_parameter("mask_token", nn.Parameter(torch.zeros(1, 1, 8)))
    return model, blocks


def in_data_parallel(prefix: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


AROUND = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight")
GOLDEN = (
    Golden("timm", of(timm_model("vit")), "timm", has=AROUND, unused="head.weight"),
    Golden(
        "timm with LayerScale",
        of(timm_model("vit", init_values=0.1)),
        "timm",
        has=("blocks.1.ls2.gamma",),
    ),
    Golden("MAE", of(mae, lambda state: {"model": state}), "mae", unused="decoder_blocks"),
    Golden(
        "timm BEiT", of(timm_model("beit", init_values=0.1)), "beit", has=("blocks.0.ls1.gamma",)
    ),
    Golden("timm EVA", of(timm_model("eva")), "beit", has=("cls_token", "pos_embed")),
    Golden(
        "VideoMAE, pre-trained",
        of(
            stack(
                videomae_block,
                "encoder.blocks",
                encoder__norm=nn.LayerNorm(DIM),
                decoder__blocks=nn.ModuleList([videomae_block()]),
                encoder_to_decoder=nn.Linear(DIM, 8, bias=False),
            ),
            lambda state: {"model": state},
        ),
        "videomae",
        has=("norm.weight",),
        unused="decoder.blocks.0.attn.qkv.weight",
    ),
    Golden(
        "VideoMAE, fine-tuned",
        of(
            stack(videomae_block, "blocks", fc_norm=nn.LayerNorm(DIM), head=nn.Linear(DIM, 3)),
            lambda state: {"module": state},
        ),
        "videomae",
        has=("fc_norm.weight",),
        unused="head.weight",
    ),
    Golden(
        "AST",
        of(
            stack(timm_block, "v.blocks", v__norm=nn.LayerNorm(DIM), mlp_head=nn.Linear(DIM, 3)),
            in_data_parallel("module."),
        ),
        "ast",
        has=("norm.weight",),
        unused="module.mlp_head.weight",
    ),
    Golden(
        "Point-MAE",
        of(
            stack(
                point_block,
                "MAE_encoder.blocks.blocks",
                MAE_encoder__norm=nn.LayerNorm(DIM),
                MAE_decoder__blocks=nn.ModuleList([point_block()]),
            ),
            lambda state: {"base_model": in_data_parallel("module.")(state), "epoch": 300},
        ),
        "point-mae",
        has=("norm.weight",),
        unused="MAE_decoder",
        bias=False,
    ),
    Golden(
        "Meta-Transformer",
        of(sequence),
        "meta-transformer",
    ),
    Golden(
        "ImageBind",
        of(imagebind),
        "imagebind:audio",
        named="imagebind:audio",
        has=("norm_pre.weight",),
        unused="modality_trunks.depth.blocks.0.attn.bias_k",
    ),
    Golden(
        "OpenCLIP",
        of(
            stack(
                lambda: ClipBlock(DIM, HEADS, HIDDEN),
                "visual.transformer.resblocks",
                visual__ln_post=nn.LayerNorm(DIM),
                transformer__resblocks=nn.ModuleList([ClipBlock(8, 2, 16)]),
            )
        ),
        "open-clip:visual",
        quick=True,
        has=("norm.weight",),
        unused="transformer.resblocks.0.ln_1.weight",
    ),
    Golden("torchvision", of(torchvision_model), "torchvision", has=AROUND, unused="heads.head"),
    Golden("torch", of(torch_encoder), "torch", post=True),
)


@pytest.mark.slow
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: str(golden.name))
def test_originals_that_are_written_out(golden: Golden, tmp_path: Path) -> None:
    check(golden, tmp_path)


@pytest.mark.slow
def test_a_model_of_timm_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hub's cache with it alone, and without a network."""
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = "vit_tiny_patch16_224.augreg_in21k"
    with pytest.raises(WeightsError, match=f"^timm://{name}: it is not in the local cache"):
        load(f"timm://{name}")
    repo, commit = tmp_path / f"models--timm--{name}", "0123456789abcdef0123456789abcdef01234567"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    model = timm.create_model(name)
    save_file(model.state_dict(), repo / "snapshots" / commit / "model.safetensors")
    weights = load(f"timm://{name}")
    found = weights.provenance
    assert (found.layout, found.dim, found.depth, found.heads) == ("timm", 192, 12, 3)
    assert (found.origin.data, found.origin.supervised) == ("ImageNet-21K", True)
    assert weights.unused == ("head.weight", "head.bias")
    assert weights.missing == ()
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in weights.state_dict().items())
    assert load(f"timm://{name}", sha256=found.sha256).provenance == found
    with pytest.raises(WeightsError, match="the sha256 of its state is"):
        load(f"timm://{name}", sha256="f" * 64)

"""The models that are timm's own class and nothing more: how timm alone builds them."""

from typing import Any

import torch
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from m2pt.data.config import DataInfo
from m2pt.models.config import ModelConfig
from m2pt.models.options import pooling

_NAMES = {
    (192, 12, 3): "vit_tiny_patch16_224",
    (384, 12, 6): "vit_small_patch16_224",
    (768, 12, 12): "vit_base_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224",
    (1280, 32, 16): "vit_huge_patch14_224",
}
"""timm's names by width, depth and heads; what else they imply is said in full."""
_ANY = "vit_tiny_patch16_224"


def timm_name(config: ModelConfig) -> str:
    """The name that timm knows a model of this size by; of another size, any."""
    return _NAMES.get((config.width, config.depth, config.heads), _ANY)


def timm_arguments(config: ModelConfig, info: DataInfo) -> dict[str, Any] | None:
    """What makes `timm.create_model(timm_name(config), ...)` the model that `build_model` builds.

    As JSON has it. None where the model has something that timm has not: a tokenizer for video or
    points, or a head of its own. Fixed positions are weights like others here.
    """
    if info.modality not in ("image", "audio") or info.task == "parts":
        return None
    if config.pool == "token_max":
        return None
    return {
        "img_size": list(info.shape[-2:]),
        "patch_size": config.tokenizer.patch,
        "in_chans": info.shape[0],
        "num_classes": info.outputs,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        **pooling(config),
    }


def timm_model(config: ModelConfig, info: DataInfo) -> nn.Module | None:
    """The same model by timm alone, in eval mode, its weights drawn; None as `timm_arguments`.

    No random number of the caller's is used up.
    """
    arguments = timm_arguments(config, info)
    if arguments is None:
        return None
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = create_model(timm_name(config), pretrained=False, **arguments)
    assert type(model) is VisionTransformer
    return model.eval()

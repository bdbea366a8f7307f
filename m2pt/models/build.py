"""Models of all modalities: timm's `VisionTransformer`, each with the tokenizer of its modality."""

from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from m2pt.data.config import DataInfo
from m2pt.models.config import ModelConfig, unfit
from m2pt.models.options import furnish, pooling
from m2pt.models.parts import PartTransformer
from m2pt.models.point import PointEmbed
from m2pt.models.tokens import token_grid
from m2pt.models.video import TubeletEmbed

_POSITION_STD = 0.2  # timm's 0.02 drowns beside the patches; digits at width 64 lose 20 points


def build_model(config: ModelConfig, info: DataInfo, *, seed: int) -> nn.Module:
    """A timm `VisionTransformer` for samples as `info` says: (B, *shape) -> logits (B, outputs).

    Blocks are timm's for every modality, tokens are averaged, and there is no class token. Image
    and audio (frames x mel bands, one channel) have timm's own `PatchEmbed`, video has tubelets,
    both with a learned position per token; points have groups whose position is an MLP of their
    centre. Where points have parts, the head is one of its own, and the model takes the clouds'
    categories as well (`parts.PartTransformer`). Linears start as in MoCo v3 and MAE (Xavier).
    Equal arguments give identical weights (float32, on the CPU), and no random number of the
    caller's is used up.

    `config` may ask for a class token, positions and a head of other kinds: see `options`.

    Raises:
        ValueError: the tokenizer does not fit the samples.
    """
    grid = token_grid(config.tokenizer, info)
    if why := unfit(config, info.modality, info.task):
        raise ValueError(why)
    made: Any = VisionTransformer
    head: dict[str, Any] = {"num_classes": info.outputs, **pooling(config)}
    if info.task == "parts":
        head = {"categories": info.classes, "parts": info.outputs, "norm": config.tokenizer.norm}
        made, head["class_token"] = PartTransformer, False
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed sets all
        model: nn.Module = made(
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            drop_path_rate=config.drop_path,
            weight_init="moco",
            **_embedding(config, info),
            **head,
        )
        _start_tokens(model)
        furnish(model, config, grid, info.outputs)
    return model


def _embedding(config: ModelConfig, info: DataInfo) -> dict[str, Any]:
    """What `VisionTransformer` is told of the tokens."""
    tokenizer, shape = config.tokenizer, info.shape
    if info.modality == "point":
        embed = partial(
            PointEmbed,
            groups=tokenizer.groups,
            group_size=tokenizer.group_size,
            norm=tokenizer.norm,
            hidden=tokenizer.hidden,
        )
        return {"embed_layer": embed, "pos_embed": "none", "in_chans": 3}
    plain = {"img_size": shape[-2:], "patch_size": tokenizer.patch, "in_chans": shape[0]}
    if info.modality == "video":
        video = partial(TubeletEmbed, frames=shape[1], tubelet=tokenizer.tubelet)
        return {"embed_layer": video, **plain}
    return {"embed_layer": PatchEmbed, **plain}


def _start_tokens(model: nn.Module) -> None:
    """Draws anew what timm draws too small for narrow models that start from scratch."""
    if isinstance(model.pos_embed, nn.Parameter):
        nn.init.normal_(model.pos_embed, std=_POSITION_STD)
    if isinstance(model.patch_embed, PointEmbed):
        model.patch_embed.reset_linears()

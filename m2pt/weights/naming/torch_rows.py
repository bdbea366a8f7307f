"""Layouts whose attention is `torch.nn.MultiheadAttention`: q, k and v in one `in_proj_weight`."""

from m2pt.weights.naming.layout import Layout

_WRAPPED = r"(?:module\.|model\.|_orig_mod\.)*"


def _attention(name: str) -> dict[str, str]:
    return {
        f"{name}.in_proj_weight": "attn.qkv.weight",
        f"{name}.in_proj_bias": "attn.qkv.bias",
        f"{name}.out_proj": "attn.proj",
    }


IMAGEBIND = Layout(
    "imagebind",
    "ImageBind: its trunks are the parts (audio, depth, imu, text, thermal, vision); the extra key "
    "and value of a trunk (bias_k, bias_v) are left aside",
    block="blocks.{i}.",
    inside={
        **_attention("attn"),
        **{name: name for name in ("mlp.fc1", "mlp.fc2")},
        "norm_1": "norm1",
        "norm_2": "norm2",
        "layer_scale_gamma1": "ls1.gamma",
        "layer_scale_gamma2": "ls2.gamma",
    },
    around={"pre_transformer_layer.0": "norm_pre"},
    prefix=rf"{_WRAPPED}modality_trunks\.(?P<part>\w+)\.",
)
OPEN_CLIP = Layout(
    "open-clip",
    "CLIP of its authors and of OpenCLIP: parts visual (unless another is named) and none for text",
    block="transformer.resblocks.{i}.",
    inside={
        **_attention("attn"),
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "ls_1.gamma": "ls1.gamma",
        "ls_2.gamma": "ls2.gamma",
    },
    around={
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1": "patch_embed.proj",
        "ln_pre": "norm_pre",
        "ln_post": "norm",
        "ln_final": "norm",
    },
    prefix=rf"{_WRAPPED}(?:(?P<part>visual)\.)?",
    part="visual",
    activation=None,  # QuickGELU in OpenAI's, GELU in most of OpenCLIP's
)
TORCHVISION = Layout(
    "torchvision",
    "the vision transformers of torchvision",
    block="encoder.layers.encoder_layer_{i}.",
    inside={
        **_attention("self_attention"),
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "mlp.linear_1": "mlp.fc1",
        "mlp.linear_2": "mlp.fc2",
        "ln_1": "norm1",
        "ln_2": "norm2",
    },
    around={
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj": "patch_embed.proj",
        "encoder.ln": "norm",
    },
    prefix=_WRAPPED,
)
TORCH = Layout(
    "torch",
    "torch.nn.TransformerEncoder",
    block="layers.{i}.",
    inside={
        **_attention("self_attn"),
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
        "norm1": "norm1",
        "norm2": "norm2",
    },
    around={"norm": "norm"},
    prefix=r"(?:module\.|model\.|_orig_mod\.|encoder\.|transformer\.|transformer_encoder\.)*",
    norm=None,
    activation=None,
)

ROWS = (IMAGEBIND, OPEN_CLIP, TORCHVISION, TORCH)

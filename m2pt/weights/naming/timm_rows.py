"""Layouts whose blocks bear timm's names. Sources: the saving code of each project."""

from m2pt.weights.naming.layout import Layout

PREFIXES = ("module.", "model.", "encoder.", "backbone.", "_orig_mod.")
_ANY = rf"(?:{'|'.join(prefix.replace('.', '[.]') for prefix in PREFIXES)})*"

BLOCK = {
    name: name
    for name in (
        *("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
        *("ls1.gamma", "ls2.gamma", "attn.q_norm", "attn.k_norm"),
    )
}
SEPARATE = {
    "attn.q_bias": "attn.q.bias",
    "attn.k_bias": "attn.k.bias",
    "attn.v_bias": "attn.v.bias",
}
"""The biases of query and value as parameters of their own; that of the key is zero, or absent."""
SCALED = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
AROUND = {
    name: name
    for name in (
        *("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed."),
        *("norm_pre", "norm", "fc_norm"),
    )
}

TIMM = Layout(
    "timm",
    "timm's vision transformers (MAE, DINO, DINOv2, DeiT, AugReg, CLIP and SigLIP towers), the "
    "encoders that MAE and AudioMAE released, M2PT's zoo, and what this project exports",
    block="blocks.{i}.",
    inside=BLOCK,
    around=AROUND,
    prefix=_ANY,
)
MAE = Layout(
    "mae",
    "MAE and AudioMAE with their decoders, which are left aside",
    block="blocks.{i}.",
    inside=BLOCK,
    around=AROUND,
    prefix=_ANY,
    signs=(r".*mask_token", r".*decoder_embed\.weight"),
)
BEIT = Layout(
    "beit",
    "BEiT and EVA of timm (separate biases, LayerScale); relative positions are left aside",
    block="blocks.{i}.",
    inside={**BLOCK, **SEPARATE, **SCALED},
    around=AROUND,
    prefix=_ANY,
    signs=(r".*blocks\.\d+\.attn\.q_bias", r".*(?:gamma_1|cls_token)"),
)
VIDEOMAE = Layout(
    "videomae",
    "VideoMAE and VideoMAE v2 of their authors; the decoder is left aside",
    block="blocks.{i}.",
    inside={**BLOCK, **SEPARATE, **SCALED},
    around=AROUND,
    prefix=_ANY,
    signs=(r".*blocks\.\d+\.attn\.q_bias",),
)
AST = Layout(
    "ast",
    "the Audio Spectrogram Transformer of its authors",
    block="blocks.{i}.",
    inside=BLOCK,
    around=AROUND,
    prefix=r"(?:module\.)?v\.",
)
POINT_MAE = Layout(
    "point-mae",
    "Point-MAE, Point-BERT and their like: blocks in blocks, without biases of q, k and v",
    block="blocks.blocks.{i}.",
    inside=BLOCK,
    around={
        name: name
        for name in (
            *("norm", "cls_token", "pos_embed.0", "pos_embed.2"),
            *("encoder.first_conv.", "encoder.second_conv."),
        )
    },
    prefix=r"(?:module\.|base_model\.)*(?:MAE_encoder\.|transformer_q\.|point_encoder\.)?",
)
META_TRANSFORMER = Layout(
    "meta-transformer",
    "Meta-Transformer: a sequence of blocks and nothing else",
    block="{i}.",
    inside=BLOCK,
)

ROWS = (BEIT, VIDEOMAE, MAE, AST, POINT_MAE, TIMM, META_TRANSFORMER)
"""What asks for more signs stands before what it could be taken for."""

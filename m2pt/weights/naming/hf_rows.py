"""Layouts of Hugging Face transformers, as `save_pretrained` writes them.

Transformers 5 renames modules in memory and writes the old names; `NEW` is for a state that was
saved from memory.
"""

from dataclasses import replace

from m2pt.weights.naming.layout import Layout

_WRAPPED = r"(?:module\.|model\.|_orig_mod\.)*"


def _prefix(*models: str) -> str:
    return rf"{_WRAPPED}(?:(?:{'|'.join(models)})\.)?"


_ATTENTION = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.attention.q_bias": "attn.q.bias",
    "attention.attention.v_bias": "attn.v.bias",
    "attention.output.dense": "attn.proj",
}
_MLP = {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
_NORMS = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
_SCALES = {"lambda_1": "ls1.gamma", "lambda_2": "ls2.gamma"}
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "pooler.layernorm": "fc_norm",
}
_BEFORE_RENAMED = {  # as BERT's own checkpoints still have them
    "attention.output.LayerNorm.gamma": "norm1.weight",
    "attention.output.LayerNorm.beta": "norm1.bias",
    "output.LayerNorm.gamma": "norm2.weight",
    "output.LayerNorm.beta": "norm2.bias",
}
_PROJECTIONS = {
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.proj",
}
_VIT_MODELS = (
    *("vit", "deit", "audio_spectrogram_transformer", "videomae", "vivit", "beit"),
    *("data2vec_vision", "dinov2", "dinov2_with_registers"),
)

VIT = Layout(
    "hf-vit",
    "ViT, ViTMAE, DeiT, AST, VideoMAE, ViViT, BEiT and data2vec-vision of Hugging Face; decoders "
    "and relative positions are left aside",
    block="encoder.layer.{i}.",
    inside={
        **_ATTENTION,
        **_MLP,
        **_NORMS,
        **_SCALES,
    },
    around=_EMBEDDINGS,
    beside={"fc_norm": "fc_norm"},
    prefix=_prefix(*_VIT_MODELS),
)
DINOV2 = Layout(
    "hf-dinov2",
    "DINOv2 of Hugging Face, with or without registers",
    block="encoder.layer.{i}.",
    inside={
        **_ATTENTION,
        **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    },
    around=_EMBEDDINGS,
    prefix=_prefix(*_VIT_MODELS),
)
TIMESFORMER = Layout(
    "hf-timesformer",
    "TimeSformer of Hugging Face: its attention in space; that in time is left aside",
    block="encoder.layer.{i}.",
    inside={
        "attention.attention.qkv": "attn.qkv",
        "attention.output.dense": "attn.proj",
        **_MLP,
        **_NORMS,
    },
    around=_EMBEDDINGS,
    prefix=_prefix("timesformer"),
)
NEW = Layout(
    "hf-new",
    "ViT, ViTMAE, DeiT, AST, ViViT and BEiT as transformers 5 names them in memory",
    block="layers.{i}.",
    inside={
        "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.k",
        "attention.v_proj": "attn.v",
        "attention.o_proj": "attn.proj",
        **{name: name for name in ("mlp.fc1", "mlp.fc2")},
        **_NORMS,
        **_SCALES,
    },
    around=_EMBEDDINGS,
    beside={"fc_norm": "fc_norm"},
    prefix=_prefix(*_VIT_MODELS),
)
CLIP = Layout(
    "hf-clip",
    "CLIP of Hugging Face: parts vision (unless another is named) and text",
    block="encoder.layers.{i}.",
    inside={
        **_PROJECTIONS,
        **{name: name for name in ("mlp.fc1", "mlp.fc2")},
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
    },
    around={
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "pre_layrnorm": "norm_pre",
        "post_layernorm": "norm",
        "final_layer_norm": "norm",
    },
    prefix=rf"{_WRAPPED}(?:(?P<part>vision|text)_model\.)?",
    part="vision",
    activation="quick_gelu",
)
SIGLIP = replace(
    CLIP,
    name="hf-siglip",
    what="SigLIP of Hugging Face, in parts as CLIP; its attention pooling is left aside",
    signs=(r".*(?:head\.probe|logit_bias)",),
    activation="gelu_tanh",
)
WHISPER = Layout(
    "hf-whisper",
    "the encoder of Whisper of Hugging Face; the decoder and the convolutions are left aside",
    block="encoder.layers.{i}.",
    inside={
        **_PROJECTIONS,
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
        "self_attn_layer_norm": "norm1",
        "final_layer_norm": "norm2",
    },
    around={"encoder.layer_norm": "norm"},
    prefix=_WRAPPED,
    signs=(r".*encoder\.conv1\.weight",),
)
WAV2VEC2 = Layout(
    "hf-wav2vec2",
    "wav2vec 2.0, HuBERT and data2vec-audio of Hugging Face (post-LN, but for the large ones)",
    block="encoder.layers.{i}.",
    inside={
        "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.k",
        "attention.v_proj": "attn.v",
        "attention.out_proj": "attn.proj",
        "feed_forward.intermediate_dense": "mlp.fc1",
        "feed_forward.output_dense": "mlp.fc2",
        "layer_norm": "norm1",
        "final_layer_norm": "norm2",
    },
    prefix=_prefix("wav2vec2", "hubert", "data2vec_audio", "wavlm"),
    norm="post",
)
BERT = Layout(
    "hf-bert",
    "BERT, RoBERTa and data2vec-text of Hugging Face (post-LN), and the text branch of CLAP",
    block="encoder.layer.{i}.",
    inside={
        "attention.self.query": "attn.q",
        "attention.self.key": "attn.k",
        "attention.self.value": "attn.v",
        "attention.output.dense": "attn.proj",
        **_MLP,
        "attention.output.LayerNorm": "norm1",
        "output.LayerNorm": "norm2",
        **_BEFORE_RENAMED,
    },
    prefix=_prefix(
        *("bert", "roberta", "xlm_roberta", "data2vec_text", "text_model", "text_branch")
    ),
    norm="post",
)

ROWS = (DINOV2, VIT, TIMESFORMER, NEW, SIGLIP, CLIP, WHISPER, WAV2VEC2, BERT)

"""Golden tests, as in `test_public_weights`, of models of Hugging Face transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from tests.numerics.golden import DEPTH, DIM, HEADS, HIDDEN, Blocks, Golden, check, randomised

SIZE = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "layer_norm_eps": 1e-6,
}
PATCHES = {"image_size": 8, "patch_size": 4}
FRAMES = {**PATCHES, "num_frames": 4, "tubelet_size": 2}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}
CONVOLUTIONS = {
    "conv_dim": (8,),
    "conv_stride": (2,),
    "conv_kernel": (3,),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    "d_model": DIM,
    "encoder_layers": DEPTH,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": 8,
    "vocab_size": 20,
    "max_source_positions": 8,
    "max_target_positions": 8,
    "num_mel_bins": 8,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
WORDS = {**SIZE, "vocab_size": 10, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def hugging_face(
    config: str, model: str, layers: str, **options: Any
) -> Callable[[Path], tuple[Path, Blocks]]:
    """Saves a model as `save_pretrained` does: transformers 5 names modules otherwise in memory."""

    def save(folder: Path) -> tuple[Path, Blocks]:
        import transformers

        configured = getattr(transformers, config)(**options)
        return pretrained(getattr(transformers, model)(configured), layers, folder)

    return save


def pretrained(model: Any, layers: str, folder: Path) -> tuple[Path, Blocks]:
    randomised(model).save_pretrained(folder)
    blocks = model.get_submodule(layers)
    assert isinstance(blocks, nn.ModuleList)
    return folder / "model.safetensors", list(blocks)


def clip_of_two_towers(folder: Path) -> tuple[Path, Blocks]:
    from transformers import CLIPConfig, CLIPModel

    text = {**WORDS, "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 8}
    config = CLIPConfig(vision_config={**SIZE, **PATCHES}, text_config=text, projection_dim=8)
    return pretrained(CLIPModel(config), "vision_model.encoder.layers", folder)


def vit_from_memory(folder: Path) -> tuple[Path, Blocks]:
    from transformers import ViTConfig, ViTModel

    model: Any = randomised(ViTModel(ViTConfig(**SIZE, **PATCHES)))
    save_file(model.state_dict(), folder / "memory.safetensors")
    return folder / "memory.safetensors", list(model.layers)


EMBEDDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
NORMED = (*EMBEDDED, "norm.weight", "norm.bias")
HUGGING_FACE = (
    Golden(
        "ViT",
        hugging_face("ViTConfig", "ViTForImageClassification", "vit.layers", **SIZE, **PATCHES),
        "hf-vit",
        has=NORMED,
        unused="classifier.weight",
    ),
    Golden("ViT from memory", vit_from_memory, "hf-new", has=NORMED),
    Golden(
        "ViTMAE",
        hugging_face(
            "ViTMAEConfig", "ViTMAEForPreTraining", "vit.layers", **SIZE, **PATCHES, **DECODER
        ),
        "hf-vit",
        has=NORMED,
        unused="decoder",
    ),
    Golden(
        "DeiT",
        hugging_face(
            "DeiTConfig", "DeiTForImageClassificationWithTeacher", "deit.layers", **SIZE, **PATCHES
        ),
        "hf-vit",
        has=(*NORMED, "dist_token"),
    ),
    Golden(
        "AST",
        hugging_face(
            "ASTConfig",
            "ASTForAudioClassification",
            "audio_spectrogram_transformer.layers",
            **SIZE,
            patch_size=4,
            max_length=16,
            num_mel_bins=8,
            frequency_stride=4,
            time_stride=4,
        ),
        "hf-vit",
        has=(*NORMED, "dist_token"),
    ),
    Golden(
        "VideoMAE",
        hugging_face(
            "VideoMAEConfig",
            "VideoMAEForPreTraining",
            "videomae.encoder.layer",
            **SIZE,
            **FRAMES,
            **DECODER,
        ),
        "hf-vit",
        has=("patch_embed.proj.weight",),
        unused="decoder.decoder_layers.0.attention.attention.q_bias",
    ),
    Golden(
        "VideoMAE, fine-tuned",
        hugging_face(
            "VideoMAEConfig",
            "VideoMAEForVideoClassification",
            "videomae.encoder.layer",
            **SIZE,
            **FRAMES,
        ),
        "hf-vit",
        has=("fc_norm.weight", "fc_norm.bias"),
        unused="classifier.weight",
    ),
    Golden(
        "ViViT",
        hugging_face(
            "VivitConfig",
            "VivitForVideoClassification",
            "vivit.layers",
            **SIZE,
            image_size=8,
            num_frames=4,
            tubelet_size=[2, 4, 4],
            hidden_act="gelu",
        ),
        "hf-vit",
        has=NORMED,
    ),
    Golden(
        "BEiT",
        hugging_face(
            "BeitConfig",
            "BeitForImageClassification",
            "beit.layers",
            **SIZE,
            **PATCHES,
            use_mean_pooling=True,
        ),
        "hf-vit",
        has=("cls_token", "fc_norm.weight", "blocks.1.ls1.gamma", "blocks.1.ls2.gamma"),
    ),
    Golden(
        "data2vec-vision",
        hugging_face(
            "Data2VecVisionConfig",
            "Data2VecVisionModel",
            "encoder.layer",
            **SIZE,
            **PATCHES,
        ),
        "hf-vit",
        has=("cls_token", "blocks.0.ls1.gamma"),
    ),
    Golden(
        "TimeSformer",
        hugging_face(
            "TimesformerConfig",
            "TimesformerForVideoClassification",
            "timesformer.encoder.layer",
            **SIZE,
            **PATCHES,
            num_frames=2,
            attention_type="space_only",
        ),
        "hf-timesformer",
        has=NORMED,
    ),
    Golden(
        "DINOv2",
        hugging_face(
            "Dinov2Config",
            "Dinov2Model",
            "encoder.layer",
            **SIZE,
            **PATCHES,
            mlp_ratio=HIDDEN // DIM,
        ),
        "hf-dinov2",
        has=(*NORMED, "blocks.1.ls1.gamma", "blocks.1.ls2.gamma"),
        unused="embeddings.mask_token",
    ),
    Golden(
        "DINOv2 with registers",
        hugging_face(
            "Dinov2WithRegistersConfig",
            "Dinov2WithRegistersModel",
            "encoder.layer",
            **SIZE,
            **PATCHES,
            mlp_ratio=HIDDEN // DIM,
        ),
        "hf-dinov2",
        has=("reg_token", "cls_token", "blocks.1.ls2.gamma"),
    ),
    Golden(
        "SigLIP vision",
        hugging_face(
            "SiglipVisionConfig",
            "SiglipVisionModel",
            "encoder.layers",
            **SIZE,
            **PATCHES,
            hidden_act="gelu",
        ),
        "hf-siglip",
        has=("pos_embed", "patch_embed.proj.bias", "norm.bias"),
        unused="head.attention.in_proj_weight",
    ),
    Golden(
        "CLIP vision",
        hugging_face("CLIPVisionConfig", "CLIPVisionModel", "encoder.layers", **SIZE, **PATCHES),
        "hf-clip",
        quick=True,
        has=("cls_token", "pos_embed", "patch_embed.proj.weight", "norm_pre.weight", "norm.bias"),
    ),
    Golden(
        "CLIP",
        clip_of_two_towers,
        "hf-clip:vision",
        quick=True,
        has=("norm_pre.weight",),
        unused="text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    Golden(
        "BERT",
        hugging_face("BertConfig", "BertModel", "encoder.layer", **WORDS),
        "hf-bert",
        post=True,
        unused="embeddings.word_embeddings.weight",
    ),
    Golden(
        "RoBERTa",
        hugging_face("RobertaConfig", "RobertaForMaskedLM", "roberta.encoder.layer", **WORDS),
        "hf-bert",
        post=True,
    ),
    Golden(
        "data2vec-text",
        hugging_face("Data2VecTextConfig", "Data2VecTextModel", "encoder.layer", **WORDS),
        "hf-bert",
        post=True,
    ),
    Golden(
        "data2vec-audio",
        hugging_face(
            "Data2VecAudioConfig", "Data2VecAudioModel", "encoder.layers", **SIZE, **CONVOLUTIONS
        ),
        "hf-wav2vec2",
        post=True,
    ),
    Golden(
        "wav2vec 2.0",
        hugging_face(
            "Wav2Vec2Config",
            "Wav2Vec2ForPreTraining",
            "wav2vec2.encoder.layers",
            **SIZE,
            **CONVOLUTIONS,
        ),
        "hf-wav2vec2",
        post=True,
        unused="quantizer.codevectors",
    ),
    Golden(
        "wav2vec 2.0, large",
        hugging_face(
            "Wav2Vec2Config",
            "Wav2Vec2Model",
            "encoder.layers",
            **SIZE,
            **CONVOLUTIONS,
            do_stable_layer_norm=True,
        ),
        "hf-wav2vec2",
    ),
    Golden(
        "HuBERT",
        hugging_face("HubertConfig", "HubertModel", "encoder.layers", **SIZE, **CONVOLUTIONS),
        "hf-wav2vec2",
        post=True,
    ),
    Golden(
        "Whisper",
        hugging_face(
            "WhisperConfig", "WhisperForConditionalGeneration", "model.encoder.layers", **WHISPER
        ),
        "hf-whisper",
        has=("norm.weight",),
        unused="model.decoder.layers.0.fc1.weight",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("golden", HUGGING_FACE, ids=lambda golden: str(golden.name))
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_originals_of_hugging_face(golden: Golden, tmp_path: Path) -> None:
    weights = check(golden, tmp_path)
    if (tmp_path / "config.json").exists():
        assert weights.provenance.heads == HEADS
        assert weights.provenance.activation == ("quick_gelu" if golden.quick else "gelu")

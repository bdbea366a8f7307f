"""What is known of public checkpoints, by their address. A table; imports no torch.

From the projects' own pages and papers; licences are those stated for the weights, or for the
repository that they come with. Where a row says nothing, nothing is known for sure.
"""

import re
from dataclasses import dataclass
from typing import Any

from m2pt.weights.provenance import Origin

_CC_NC = "CC-BY-NC-4.0"
_APACHE = "Apache-2.0"
_IN1K, _IN21K, _K400 = "ImageNet-1K", "ImageNet-21K", "Kinetics-400"


@dataclass(frozen=True)
class Known:
    """One public checkpoint, or several of a kind."""

    pattern: str
    """Found in the address of the weights, whatever its case."""
    origin: Origin


def _row(pattern: str, modality: str, data: str | None, **said: Any) -> Known:
    return Known(pattern, Origin(modality=modality, data=data, **said))


KNOWN: tuple[Known, ...] = (
    # images
    _row(
        r"(?<![a-z])mae_finetuned_vit|mae_in1k_ft",
        "image", _IN1K, supervised=True, lineage="MAE on ImageNet-1K", licence=_CC_NC,
    ),
    _row(
        r"(?<![a-z])mae_(?:pretrain|visualize)_vit|vit_\w+\.mae(?![\w.-])|facebook/vit-mae-",
        "image", _IN1K, supervised=False, lineage="scratch", licence=_CC_NC,
    ),
    _row(
        r"dinov2",
        "image", "LVD-142M", supervised=False, lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"vit_\w+\.dino(?![\w.-])|facebook/dino-vit",
        "image", _IN1K, supervised=False, lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"vit_\w+\.augreg2?_in21k|google/vit-\w+-patch\d+-\d+(?:-in21k)?\b",
        "image", _IN21K, supervised=True, lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"\bdeit3?_\w+|facebook/deit-",
        "image", _IN1K, supervised=True, lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"\bbeit_\w+|microsoft/beit-",
        "image", _IN21K, licence=_APACHE,
    ),
    _row(
        r"data2vec-vision-\w+-ft1k",
        "image", _IN1K, supervised=True, lineage="data2vec on ImageNet-1K", licence=_APACHE,
    ),
    _row(
        r"data2vec-vision",
        "image", _IN1K, supervised=False, lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"openai/clip-vit|vit_\w+\.openai",
        "image", "WebImageText (image-text pairs)", supervised=True, lineage="scratch",
        involves=("text",),
    ),
    _row(
        r"laion2b|laion/CLIP-ViT",
        "image", "LAION-2B (image-text pairs)", supervised=True, lineage="scratch",
        involves=("text",),
    ),
    _row(
        r"siglip",
        "image", "WebLI (image-text pairs)", supervised=True, lineage="scratch",
        involves=("text",), licence=_APACHE,
    ),
    _row(
        r"meta-?transformer",
        "image", "LAION-2B (image-text pairs)", supervised=True,
        lineage="contrastive training on LAION-2B", involves=("text",), licence=_APACHE,
    ),
    # audio
    _row(
        r"audiomae\w*_(?:ft|finetuned)",
        "audio", "AudioSet", supervised=True, lineage="AudioMAE on AudioSet-2M",
        licence="CC-BY-4.0",
    ),
    _row(
        r"audiomae",
        "audio", "AudioSet-2M", supervised=False, lineage="scratch", licence="CC-BY-4.0",
    ),
    _row(
        r"audioset_\d+_\d+_0\.\d+|ast-finetuned",
        "audio", "AudioSet", supervised=True, lineage="DeiT, trained on ImageNet",
        involves=("image",), licence="BSD-3-Clause",
    ),
    _row(
        r"wav2vec2-(?:base|large)|hubert-(?:base|large)",
        "audio", "speech", lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"data2vec-audio",
        "audio", "LibriSpeech", lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"whisper-(?:tiny|base|small|medium|large)",
        "audio", "transcribed speech of the web", supervised=True, lineage="scratch",
        involves=("text",), licence=_APACHE,
    ),
    # video
    _row(
        r"videomae-\w+-finetuned-(?:kinetics|ssv2)",
        "video", "Kinetics-400 or Something-Something v2", supervised=True,
        lineage="VideoMAE on the same videos", licence=_CC_NC,
    ),
    _row(
        r"vit_[bs]_k710_dl_from_giant",
        "video", "Kinetics-710", supervised=True, lineage="distilled from VideoMAE v2-g",
    ),
    _row(
        r"MCG-NJU/videomae-",
        "video", _K400, supervised=False, lineage="scratch", licence=_CC_NC,
    ),
    _row(
        r"videomae_pretrain_vit",
        "video", None, supervised=False, lineage="scratch", licence=_CC_NC,
    ),
    _row(r"videomae", "video", None),
    _row(
        r"timesformer-base",
        "video", "Kinetics or Something-Something v2", supervised=True,
        lineage="ViT, trained on ImageNet", involves=("image",), licence=_CC_NC,
    ),
    _row(
        r"vivit-b",
        "video", _K400, supervised=True, lineage="ViT, trained on ImageNet-21K",
        involves=("image",), licence="MIT",
    ),
    # points
    _row(r"point-?mae", "point", "ShapeNet"),
    _row(
        r"uni3d",
        "point", "ensemble of 3D shapes", lineage="EVA, trained on images, and aligned with CLIP",
        involves=("image", "text"), licence="MIT",
    ),
    # text
    _row(
        r"\bbert-(?:base|large)-",
        "text", "BookCorpus and Wikipedia", supervised=False, lineage="scratch", licence=_APACHE,
    ),
    _row(
        r"\broberta-(?:base|large)",
        "text", "text of the web", supervised=False, lineage="scratch", licence="MIT",
    ),
    # several trunks
    _row(
        r"imagebind",
        "multimodal", "pairs with images of many sources", supervised=False,
        lineage="aligned with the image tower of OpenCLIP", involves=("image", "text"),
        licence=_CC_NC,
    ),
    # M2PT's own zoo: no licence is stated
    _row(r"vit-b16-image-0\d+|Image_ViT_B16", "image", None, supervised=False),
    _row(r"vit-b16-audio-0\d+|Audio_ViT_B16", "audio", None, supervised=False),
    _row(r"vit-b16-video-0\d+|Video_ViT_B16", "video", None, supervised=False),
    _row(r"Point_ViT_B16", "point", None, supervised=False),
)  # fmt: skip
"""In the order in which they are tried: the first that is found counts."""

_TRUNKS = {
    "vision": "image",
    "visual": "image",
    "audio": "audio",
    "depth": "depth",
    "thermal": "thermal",
    "imu": "imu",
    "text": "text",
}
_HEADS = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
}
"""(width, heads) of the usual sizes of vision transformers."""
_SIZED = re.compile(
    r"(?:vit|deit3?|beit|mae)[_-](?:\w+[_-])*?(tiny|small|base|large|huge)(?![a-z])"
)


def origin_of(address: str, layout: str = "", part: str | None = None) -> Origin:
    """What is known of the weights at an address; `part` is the trunk that was taken of them."""
    known = next((row.origin for row in KNOWN if re.search(row.pattern, address, re.I)), Origin())
    if layout == "imagebind" and known == Origin():
        known = origin_of("imagebind")
    modality = _TRUNKS.get(part or "")
    if modality is None or known == Origin():
        return known
    every = (known.modality, *known.involves)
    others = tuple(str(name) for name in every if name not in (modality, "multimodal", None))
    return known.stated(modality=modality, involves=others)


def heads_of(address: str, dim: int) -> int | None:
    """The heads of a vision transformer whose name tells its size; None where it does not."""
    found = _SIZED.search(address.rpartition("://")[2].lower())
    width, heads = _HEADS[found[1]] if found else (None, None)
    return heads if width == dim else None

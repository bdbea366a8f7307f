"""Load the model that lies beside this file: ``from load_model import load_model``.

It is a plain vision transformer: no pathway, no auxiliary, nothing of Ray or MLflow. What is
needed is m2pt with torch, timm and safetensors. Run as a program, it prints what it loaded.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load
from torch import nn

from m2pt.data.config import DataInfo
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer

FORMAT = 1


def load_model(folder: Path | str = Path(__file__).parent) -> nn.Module:
    """The exported model in eval mode; takes (B, *shape) float inputs, gives (B, classes) logits.

    One that tells the parts of a cloud's points takes the clouds' categories (B,) beside them, and
    gives (B, points, parts).

    Raises:
        ValueError: the weights are not the ones that model.json describes, or it is of another
            format.
        RuntimeError: they do not fit the model.
    """
    about = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    if about["format"] != FORMAT:
        raise ValueError(
            f"model.json: format is {about['format']!r}, this file reads {FORMAT}; use the "
            "load_model.py that was exported with it, or export the trial again"
        )
    weights = (Path(folder) / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    if digest != about["sha256"]:
        raise ValueError(
            f"model.safetensors: sha256 is {digest}, but model.json says {about['sha256']}; "
            "export the trial again"
        )
    model = about["model"]
    config = ModelConfig(**{**model, "tokenizer": Tokenizer(**model["tokenizer"])})
    data = about["data"]
    info = DataInfo(
        modality=data["modality"],
        shape=tuple(data["shape"]),
        classes=data["classes"],
        class_names=tuple(data["class_names"]),
        digest=data["digest"],
        task=data.get("task", "classes"),
        parts=tuple(tuple(names) for names in data.get("parts", ())),
    )
    plain = build_model(config, info, seed=0).to(getattr(torch, about["dtype"]))
    plain.load_state_dict(load(weights), strict=True)
    return plain.eval()


if __name__ == "__main__":
    loaded = load_model()
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    print(f"{type(loaded).__name__} with {parameters:,} parameters")

"""What a config.json beside weights says of them: heads, norm style, activation. Pure.

It counts only where it speaks of these very weights: its width and depth must be theirs.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from m2pt.weights.naming.layout import NormStyle

_LARGEST_BYTES = 2**20
_WIDTH = ("hidden_size", "d_model")
_DEPTH = ("num_hidden_layers", "encoder_layers")
_HEADS = ("encoder_attention_heads", "num_attention_heads")
_ACTIVATION = ("hidden_act", "activation_function")
_TOWERS = {"vision": "vision_config", "text": "text_config"}
_ACTIVATIONS = dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh")


class Described(NamedTuple):
    """None is not said."""

    heads: int | None = None
    norm: NormStyle | None = None
    activation: str | None = None


def read_config(path: Path) -> Mapping[str, Any]:
    """The config.json at `path`; empty where there is none that can be read."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return {}
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def described(config: Mapping[str, Any], part: str | None, dim: int, depth: int) -> Described:
    """What a config says of an encoder of this width and depth."""
    for one in _candidates(config, part):
        if (_first(one, _WIDTH), _first(one, _DEPTH)) == (dim, depth):
            heads, activation = _first(one, _HEADS), _first(one, _ACTIVATION)
            stable = one.get("do_stable_layer_norm")
            return Described(
                heads if isinstance(heads, int) and heads > 0 else None,
                None if stable is None else ("pre" if stable is True else "post"),
                _ACTIVATIONS.get(activation, activation) if isinstance(activation, str) else None,
            )
    return Described()


def _candidates(config: Mapping[str, Any], part: str | None) -> Iterator[Mapping[str, Any]]:
    tower = config.get(_TOWERS.get(part or "vision", ""))
    if isinstance(tower, dict):
        yield tower
    yield config


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if key in config), None)

"""The resumable state of a training, as data: tensors and JSON, never code.

As bytes a state is one safetensors file whose metadata holds the JSON.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FORMAT = 1
_META = "m2pt_state"


@dataclass(frozen=True)
class State:
    """What changed in a training so far: tensors by name, and what they belong to."""

    tensors: dict[str, Tensor]
    meta: dict[str, JSON]


def to_bytes(state: State) -> bytes:
    """One safetensors file; the same state gives the same bytes."""
    meta = json.dumps(state.meta, sort_keys=True, allow_nan=False)
    return save(state.tensors, metadata={_META: meta})


def from_bytes(data: bytes) -> State:
    """The state that `to_bytes` wrote.

    Raises ValueError where `data` is truncated, something else, or of a newer format.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(
            f"state: {len(data)} bytes are no whole safetensors file: {error}"
        ) from None
    metadata = _header(data).get("__metadata__", {})
    if _META not in metadata:
        raise ValueError("state: a safetensors file, but not a training state (weights alone?)")
    meta: dict[str, JSON] = json.loads(metadata[_META])
    check_format(meta)
    return State(tensors, meta)


def check_format(meta: Mapping[str, JSON]) -> None:
    """Raise ValueError unless this version can read states with this `meta`."""
    written = meta.get("format")
    if written != FORMAT:
        raise ValueError(
            f"state: format {written!r} where this version reads {FORMAT}; "
            "resume with the version that wrote it"
        )


def _header(data: bytes) -> dict[str, Any]:
    """safetensors: 8 bytes of length (little endian), then that much JSON."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header

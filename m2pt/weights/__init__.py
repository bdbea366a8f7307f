"""Weights of others: any known layout -> timm's names, with where they come from.

`load` and `Weights` are imported on first use, so that reading a configuration costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2pt.weights.public import Weights, load

__all__ = ["Weights", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module("m2pt.weights.public"), name)
    return found

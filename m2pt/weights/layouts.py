"""Foreign checkpoints -> canonical block weights. Pure: dictionaries in, dictionaries out.

Understood so far: timm's names, flat or under the prefixes `module.`, `model.`, `encoder.`,
`backbone.` and `_orig_mod.` in any order, in a container `{"model": ...}`, `{"state_dict": ...}`
or `{"module": ...}`. What else a checkpoint holds (heads, norms, a `decoder.`) is left aside.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from m2pt.weights.blocks import WeightsError, checked

CONTAINERS = ("model", "state_dict", "module")
_DEEPEST = 8  # containers in containers; a dictionary may also hold itself
PREFIXES = ("module.", "model.", "encoder.", "backbone.", "_orig_mod.")

_TIMM = re.compile(
    rf"(?P<prefix>(?:{'|'.join(map(re.escape, PREFIXES))})*)"
    r"(?P<key>blocks\.\d+\.(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))"
)


def canonical(content: object, where: str) -> dict[str, Tensor]:
    """The block weights in what a checkpoint file held; `where` names it in errors.

    Raises:
        WeightsError: the layout is not known, or the blocks in it are incomplete or unsound.
    """
    state = _unpacked(content, where)
    by_prefix: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in state.items():
        match = _TIMM.fullmatch(name)
        if match and isinstance(value, Tensor):
            by_prefix[match["prefix"]][match["key"]] = value
    if not by_prefix:
        raise WeightsError(
            f"{where}: no block weights of a known layout (timm's names, as "
            f"blocks.0.attn.qkv.weight, under the prefixes {' '.join(PREFIXES)}); "
            f"it begins with {_first(state)}"
        )
    if len(by_prefix) > 1:
        raise WeightsError(
            f"{where}: blocks under {len(by_prefix)} prefixes "
            f"({', '.join(repr(prefix) for prefix in sorted(by_prefix))}); "
            "save the one encoder that is meant in a file of its own"
        )
    return checked(next(iter(by_prefix.values())), where)


def named_as_timm(content: object, where: str) -> dict[str, Tensor]:
    """All tensors beside the blocks in what a checkpoint file held, under timm's names.

    Raises:
        WeightsError: as `canonical`.
    """
    blocks, state = canonical(content, where), _unpacked(content, where)
    first = next(iter(blocks))
    matches = (match for match in map(_TIMM.fullmatch, state) if match and match["key"] == first)
    prefix = next(matches)["prefix"]
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }


def _unpacked(content: object, where: str) -> Mapping[str, object]:
    """The innermost dictionary of the known containers."""
    state = content
    for _ in range(_DEEPEST):
        if not isinstance(state, Mapping):
            break
        found = (state[key] for key in CONTAINERS if key in state)
        inner = next((value for value in found if isinstance(value, Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in state.items()}
        state = inner
    raise WeightsError(
        f"{where}: holds one {type(content).__name__}, no dictionary of tensors; "
        "save model.state_dict()"
    )


def _first(state: Mapping[str, object]) -> str:
    names = list(state)[:5] or ["nothing: it is empty"]
    return ", ".join(names) + (", ..." if len(state) > 5 else "")

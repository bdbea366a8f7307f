"""Foreign checkpoints -> timm's names. Pure: dictionaries in, dictionaries out.

A layout, one of `m2pt.weights.naming`, says which name stands for which; here its tensors are
gathered and q, k and v joined, where a source keeps them apart. A key without a bias beside a query
with one has a bias of zeros: VideoMAE, BEiT and Whisper are built so.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from m2pt.weights.blocks import (
    WeightsError,
    bias_key,
    block_key,
    check_values,
    checked,
    widened,
)
from m2pt.weights.naming.layout import Layout, Place
from m2pt.weights.naming.table import AUTO, LAYOUTS, layout_named, why_refused

CONTAINERS = ("model", "state_dict", "module", "base_model")
_DEEPEST = 8  # containers in containers; a dictionary may also hold itself
_APART = re.compile(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)")
_ATTENDING = re.compile(r"blocks\.\d+\.attn\.(?:q|qkv)\.weight")
_SCALE = re.compile(r"blocks\.(\d+)\.(ls[12])\.gamma")
_SCALED = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")


@dataclass(frozen=True)
class Converted:
    """What a checkpoint holds, under timm's names."""

    layout: Layout
    part: str | None
    state: dict[str, Tensor]
    """`blocks.0.attn.qkv.weight` and so on; float32, or float64."""
    unused: tuple[str, ...]
    """Names of the checkpoint's tensors that stand for nothing here."""


def canonical(content: object, where: str, layout: str = AUTO) -> dict[str, Tensor]:
    """The block weights in what a checkpoint file held; `where` names it in errors.

    They are as `plain_blocks` gives them.

    Raises:
        WeightsError: the layout is not known, or the blocks in it are incomplete or unsound.
    """
    return plain_blocks(converted(content, where, layout).state, where)


def converted(content: object, where: str, layout: str = AUTO) -> Converted:
    """Everything in a checkpoint that has a name in timm; `layout` as `layout_named` reads it.

    Raises:
        WeightsError: the layout is not known or cannot serve, or the blocks are incomplete or
            unsound.
        ValueError: there is no layout of that name.
    """
    held = _unpacked(content, where)
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    row, part = layout_named(layout)
    if row is None:
        row = _recognised(tensors, held, where)
    elif not row.suits(tensors):
        raise WeightsError(
            f"{where}: no block weights of layout {row.name!r} ({row.what}); it begins with "
            f"{_first(held)}"
        )
    places, part = _chosen(row, tensors, part, where)
    state = _joined(_gathered(places, tensors, where), where)
    sound = checked({name: state[name] for name in state if _is_linear(name)}, where)
    others = {name: _as_timm(name, state[name]) for name in state if name not in sound}
    for name, tensor in others.items():
        if tensor.is_floating_point():  # and no counter, as batch norms have
            check_values(name, tensor, where)
            others[name] = widened(tensor)
    unused = tuple(name for name in tensors if name not in places)
    return Converted(row, part, {**others, **sound}, unused)


def plain_blocks(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Canonical block weights of a state under timm's names, with LayerScale folded in (`folded`).

    Raises:
        WeightsError: a matrix is missing, or a tensor is unsound.
    """
    blocks = checked({name: state[name] for name in state if _is_linear(name)}, where)
    return folded(blocks, state, where)


def folded(
    blocks: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Block weights that need no LayerScale; the very same tensors where `state` has none.

    Where blocks scale what attention and MLP give (`ls1.gamma`, `ls2.gamma`), the rows of
    `attn.proj` and `mlp.fc2` and their biases are multiplied by it: so a plain block with these
    weights computes what the block with LayerScale did.

    Raises:
        WeightsError: a scale is of another width than the rows.
    """
    found = dict(blocks)
    for key, gamma in state.items():
        match = _SCALE.fullmatch(key)
        if match is None or (weight := block_key(int(match[1]), _SCALED[match[2]])) not in found:
            continue
        bias = bias_key(int(match[1]), _SCALED[match[2]])
        if gamma.shape != found[weight].shape[:1]:
            raise WeightsError(
                f"{where}: {key} has shape {tuple(gamma.shape)}, but {weight} has "
                f"{len(found[weight])} rows to scale"
            )
        found[weight] = found[weight] * gamma[:, None]
        if bias in found:
            found[bias] = found[bias] * gamma
    return found


def _recognised(tensors: Mapping[str, Tensor], held: Mapping[str, object], where: str) -> Layout:
    found = next((row for row in LAYOUTS.values() if row.suits(tensors)), None)
    reason = why_refused(tensors)
    if found is not None and reason is None:
        return found
    if found is not None:  # as CLAP's text branch, beside the audio branch that was perhaps meant
        raise WeightsError(
            f"{where}: has blocks that cannot serve ({reason}), and others beside them; if those "
            f"are meant, say so: layout: {found.name}"
        )
    if reason is not None:
        raise WeightsError(f"{where}: {reason}")
    raise WeightsError(
        f"{where}: no block weights of a known layout ({', '.join(LAYOUTS)}; timm's names are as "
        f"blocks.0.attn.qkv.weight); it begins with {_first(held)}"
    )


def _chosen(
    row: Layout, names: Iterable[str], part: str | None, where: str
) -> tuple[dict[str, Place], str | None]:
    """The names of the one trunk that is meant with what they stand for, and which part it is."""
    places = {name: place for name in names if (place := row.place(name)) is not None}
    trunks: dict[str, str | None] = {}
    for place in places.values():
        if place.prefix is not None and _ATTENDING.fullmatch(place.name):
            trunks[place.prefix] = place.part
    wanted = part if part is not None else row.part
    named = [prefix for prefix, found in trunks.items() if found == wanted]
    if part is None and len(trunks) == 1:
        named = list(trunks)
    if len(named) != 1:
        raise WeightsError(f"{where}: {_which_trunk(row, trunks, part)}")
    (prefix,) = named
    kept = {name: place for name, place in places.items() if place.prefix in (prefix, None)}
    return kept, trunks[prefix]


def _which_trunk(row: Layout, trunks: Mapping[str, str | None], part: str | None) -> str:
    parts = sorted({found for found in trunks.values() if found is not None})
    if part is not None:
        return f"no {part!r} among its parts, which are {', '.join(parts) or 'none'}"
    if parts:
        return (
            f"{len(trunks)} trunks ({', '.join(parts)}); say which is meant, as in "
            f"layout: {row.name}:{parts[0]}"
        )
    return (
        f"blocks under {len(trunks)} prefixes "
        f"({', '.join(repr(prefix) for prefix in sorted(trunks))}); "
        "save the one encoder that is meant in a file of its own"
    )


def _gathered(
    places: Mapping[str, Place], tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Tensors under what their names stand for."""
    sources: dict[str, str] = {}
    for name, place in places.items():
        other = sources.setdefault(place.name, name)
        if other != name:
            raise WeightsError(
                f"{where}: both {other} and {name} stand for {place.name}; keep the one that is "
                "meant"
            )
    return {name: tensors[source] for name, source in sources.items()}


def _joined(parts: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same, with q, k and v one above the other in `attn.qkv`."""
    state: dict[str, Tensor] = {}
    apart: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in parts.items():
        match = _APART.fullmatch(name)
        if match is None:
            state[name] = tensor
        else:
            apart[f"{match[1]}qkv.{match[3]}"][match[2]] = tensor
    for name, found in apart.items():
        if name in state:
            raise WeightsError(f"{where}: has {name} whole and in parts; keep one of the two")
        state[name] = _stacked(name, found, where)
    return state


def _stacked(name: str, found: Mapping[str, Tensor], where: str) -> Tensor:
    lacking = [letter for letter in "qkv" if letter not in found]
    some = next(iter(found.values()))
    if name.endswith(".bias"):
        found = {**dict.fromkeys(lacking, torch.zeros_like(some)), **found}
    elif lacking:
        raise WeightsError(f"{where}: {name} cannot be joined: {', '.join(lacking)} not there")
    if len({found[letter].shape for letter in "qkv"}) > 1:
        shapes = ", ".join(f"{letter} {tuple(found[letter].shape)}" for letter in "qkv")
        raise WeightsError(
            f"{where}: {name} cannot be joined: {shapes}; query, key and value must be of one width"
        )
    return torch.cat([found[letter] for letter in "qkv"])


def _as_timm(name: str, tensor: Tensor) -> Tensor:
    """Tokens and positions with an axis for the batch and one for tokens."""
    if name not in _TOKENS or tensor.ndim not in (1, 2):
        return tensor
    return tensor.reshape(1, -1, tensor.shape[-1])


def _is_linear(name: str) -> bool:
    return bool(re.fullmatch(r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])\.\w+", name))


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

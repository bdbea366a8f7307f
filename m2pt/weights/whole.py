"""Whole starting weights: canonical block weights, and what else a target can start from.

Beside the linears of the blocks (`m2pt.weights.blocks`) the canonical names are timm's, too:
`blocks.{i}.norm1`, `norm2` (weight, bias), `blocks.{i}.ls1.gamma`, `ls2.gamma` (D,), `norm`,
`fc_norm`, `norm_pre`, `cls_token` (1, 1, D), `pos_embed` (1, prefix + L, D), and
`patch_embed.proj`: of images and spectrograms (D, C, P, P), frequency last, of clips
(D, C, T, P, P). A point cloud's tokenizer is `patch_embed.*` as in `m2pt.models.point`, or has
Point-MAE's names. Heads, decoders and the like are no part of it.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from m2pt.data.config import Modality
from m2pt.weights.blocks import LINEARS, WeightsError, checked
from m2pt.weights.files import blocks_to_bytes, metadata_of
from m2pt.weights.layouts import folded
from m2pt.weights.public import Weights

_COUNTER = "num_batches_tracked"  # of a BatchNorm: the one tensor of whole numbers
_ABOUT = "m2pt"  # of the metadata of a safetensors file; one key, so that equal is equal bytes
_LINEAR = re.compile(rf"blocks\.\d+\.({'|'.join(map(re.escape, LINEARS))})\.(weight|bias)")
_BESIDE = re.compile(
    r"blocks\.\d+\.((norm[12]|attn\.[qk]_norm)\.(weight|bias)|ls[12]\.gamma)"
    r"|(norm|fc_norm|norm_pre)\.(weight|bias)"
    r"|cls_token|dist_token|reg_token|pos_embed"
    r"|patch_embed\..+"
    r"|(pos_embed\.[02]|encoder\.(first|second)_conv\.\d)\.\w+"  # Point-MAE's
)


@dataclass(frozen=True)
class WholeWeights:
    """Canonical weights, and what of their source is known.

    `modality`: of the samples that the tokenizer is for, of ours or another. `grid`: of the
    learned positions. `post_norm`: blocks normalise after attention and MLP, as BERT's do, so that
    their norms are of no use before them. `unused`: names of what else the source holds, such as a
    head; not known of weights that lie in the store.
    """

    tensors: Mapping[str, Tensor]
    modality: str | None = None
    grid: tuple[int, ...] | None = None
    post_norm: bool = False
    unused: tuple[str, ...] = ()

    @staticmethod
    def of(weights: "WholeWeights | Mapping[str, Tensor]") -> "WholeWeights":
        """Weights of which nothing else may be known."""
        return weights if isinstance(weights, WholeWeights) else WholeWeights(weights)

    @property
    def blocks(self) -> dict[str, Tensor]:
        """The linears of the blocks alone, as auxiliaries lend them: LayerScale folded in."""
        linears = {name: t for name, t in self.tensors.items() if _LINEAR.fullmatch(name)}
        return folded(linears, self.tensors, "weights")

    @property
    def blocks_alone(self) -> bool:
        """Whether there is nothing else."""
        return len(self.blocks) == len(self.tensors)


def whole_weights(
    state: Mapping[str, Tensor],
    where: str,
    modality: str | None = None,
    grid: tuple[int, ...] | None = None,
    *,
    post_norm: bool = False,
) -> WholeWeights:
    """The canonical weights in a state with canonical names, checked; heads and others are left.

    `modality`, `grid` and `post_norm` are as in `WholeWeights`.

    Raises:
        WeightsError: blocks are missing, or a tensor breaks a rule; `where` names the source.
    """
    blocks = checked({name: state[name] for name in state if _LINEAR.fullmatch(name)}, where)
    beside = {name: value for name, value in state.items() if _BESIDE.fullmatch(name)}
    for name, value in beside.items():
        _check_values(name, value, where)
    tensors = blocks | {name: _widened(beside[name]) for name in sorted(beside)}
    unused = tuple(name for name in state if name not in tensors)
    return WholeWeights(tensors, modality, grid, post_norm, unused)


def whole_described(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], where: str
) -> WholeWeights:
    """As `whole_weights`, with what the metadata of a safetensors file says of them; that of other
    programs' files says nothing.

    Raises:
        WeightsError: as `whole_weights`, or the metadata is damaged.
    """
    said = metadata.get(_ABOUT)
    if said is None:
        return whole_weights(state, where)
    try:
        about = json.loads(said)
        modality, grid, post_norm = about["modality"], about["grid"], bool(about["post_norm"])
        modality = None if modality is None else str(modality)
        grid = None if grid is None else tuple(int(edge) for edge in grid)
    except (ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{where}: what it says of itself cannot be read: {error}") from error
    return whole_weights(state, where, modality, grid, post_norm=post_norm)


def whole_to_bytes(weights: WholeWeights) -> bytes:
    """As safetensors; equal weights give equal bytes, those of blocks alone `blocks_to_bytes`'s.

    Raises:
        WeightsError: the weights break a rule.
    """
    if weights.blocks_alone:
        return blocks_to_bytes(weights.blocks)
    about = {"modality": weights.modality, "grid": weights.grid, "post_norm": weights.post_norm}
    tensors = {name: value.cpu().contiguous() for name, value in weights.tensors.items()}
    return save(tensors, {_ABOUT: json.dumps(about)})


def whole_from_bytes(data: bytes, where: str = "weights") -> WholeWeights:
    """What `whole_to_bytes` wrote, or any safetensors with canonical names.

    Raises:
        WeightsError: the bytes are damaged, or the weights break a rule.
    """
    try:
        state = from_safetensors(data)
    except SafetensorError as error:
        raise WeightsError(f"{where}: damaged safetensors ({error})") from error
    return whole_described(state, _metadata(data), where)


def load_whole(path: str | os.PathLike[str]) -> WholeWeights:
    """A file of what `whole_to_bytes` wrote, taken as it is: no layout is looked for, for what was
    converted once would be converted again, and its path says nothing of it. Other checkpoints are
    for `whole_of`.

    Raises:
        WeightsError: the file is damaged, or the weights break a rule.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged safetensors ({error})") from error
    return whole_described(state, metadata_of(path), str(path))


def whole_of(weights: Weights) -> WholeWeights:
    """Of a checkpoint of any layout, with what is known of it.

    Raises:
        WeightsError: what a file of ours says of itself cannot be read.
    """
    said, state = weights.provenance, weights.state_dict()
    if _ABOUT not in weights.metadata:  # of ours its kernel is turned already
        state = _time_first(state)
    found = whole_described(state, weights.metadata, said.uri)
    known = said.origin.modality if said.origin.modality in get_args(Modality) else None
    return replace(
        found,
        modality=found.modality or known,
        post_norm=found.post_norm or said.norm == "post",
        unused=(*weights.unused, *(name for name in weights.state_dict() if name not in state)),
    )


def as_before(weights: WholeWeights, sha256: str) -> WholeWeights | None:
    """What an earlier version took of these weights, if its bytes have the digest `sha256`.

    Of a target, too, it took the linears of the blocks alone; at first without LayerScale folded
    in, and without the biases that a source keeps apart for query and value.
    """
    linears = {name: t for name, t in weights.tensors.items() if _LINEAR.fullmatch(name)}
    bare = {name: t for name, t in linears.items() if not name.endswith("attn.qkv.bias")}
    for blocks in (weights.blocks, linears, bare):
        if hashlib.sha256(blocks_to_bytes(blocks)).hexdigest() == sha256:
            return WholeWeights(blocks)
    return None


def _time_first(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With AST's kernel turned: of all that is known here, its patches alone run over frequency
    first. Its positions, of patches that overlap, have no place among ours.

    It is told by a distillation token beside a kernel of one channel.
    """
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or "dist_token" not in state or kernel.ndim != 4 or kernel.shape[1] != 1:
        return dict(state)
    turned = {name: value for name, value in state.items() if name != "pos_embed"}
    return {**turned, "patch_embed.proj.weight": kernel.transpose(2, 3).contiguous()}


def _metadata(data: bytes) -> dict[str, str]:
    """Of sound safetensors."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def _check_values(name: str, value: Tensor, where: str) -> None:
    if name.endswith(_COUNTER):
        return
    if not value.is_floating_point():
        raise WeightsError(
            f"{where}: {name} is {value.dtype}; weights are of floating point, not quantised"
        )
    if not torch.isfinite(value).all():
        raise WeightsError(
            f"{where}: {name} holds values that are NaN or infinite; take a sound checkpoint"
        )


def _widened(value: Tensor) -> Tensor:
    narrow = value.is_floating_point() and value.dtype != torch.float64
    return (value.float() if narrow else value).contiguous()

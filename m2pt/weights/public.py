"""Public weights: from an address to timm's names, with where they come from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import save
from torch import Tensor

from m2pt.weights.address import FromTimm, InBucket, OnDisk, OnHub, parse
from m2pt.weights.blocks import WeightsError, block_key, depth_of_blocks
from m2pt.weights.checkpoints import heads_of, origin_of
from m2pt.weights.described import described, read_config
from m2pt.weights.files import content_of, metadata_of, sha256_of
from m2pt.weights.layouts import Converted, converted, plain_blocks
from m2pt.weights.naming.table import AUTO, layout_named
from m2pt.weights.provenance import Provenance
from m2pt.weights.sources import CONFIG, HUB_FILES, from_hub, from_timm

_NORMS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
_BIASES = ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias")
_AROUND = (
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
    *("norm.weight", "norm.bias"),
)


@dataclass(frozen=True, eq=False)
class Weights:
    """A checkpoint under timm's names, and where it comes from."""

    provenance: Provenance
    unused: tuple[str, ...]
    """Names in the checkpoint of what stands for nothing here: heads, decoders, masks, ..."""
    missing: tuple[str, ...]
    """What timm's plain vision transformer of this depth has and the checkpoint has not."""
    metadata: Mapping[str, str]
    """What a safetensors file says of itself."""
    _state: Mapping[str, Tensor] = field(repr=False)

    def state_dict(self) -> dict[str, Tensor]:
        """All that has a name in timm, as float32 (float64 stays).

        Per block `blocks.0.` and so on: `norm1`, `attn.qkv` (rows q, k, v), `attn.proj`, `norm2`,
        `mlp.fc1`, `mlp.fc2`, each with `.weight` and, where there is one, `.bias`, and
        `ls1.gamma`, `ls2.gamma` where it has LayerScale. Around them, where the source has them:
        `cls_token`, `dist_token`, `reg_token` and `pos_embed` (1, tokens, D),
        `patch_embed.proj.weight` (D, channels, then its extent: 2 axes, or 3 of video), `norm_pre`,
        `norm` and `fc_norm`.

        Where `provenance.norm` is `post`, `norm1` follows attention and `norm2` the MLP: they do
        not belong before them.
        """
        return dict(self._state)

    def blocks(self) -> dict[str, Tensor]:
        """The canonical block weights: the four linears of every block, checked.

        LayerScale is folded in: the rows and biases of `attn.proj` and `mlp.fc2` are multiplied by
        `ls1.gamma` and `ls2.gamma`, so that a plain block computes what the source's did.
        """
        return plain_blocks(self._state, self.provenance.uri)


def load(uri: str, layout: str = AUTO, *, sha256: str | None = None) -> Weights:
    """Public weights from a path, `file://`, `hf://OWNER/NAME[@REVISION][/FILE]` or `timm://MODEL`.

    Files are safetensors, or torch files of which nothing is run; `layout` is recognised, or named
    as in `hf-vit` or `imagebind:audio` (`m2pt.weights.naming`). With `sha256` another file is
    refused; of a model of timm it is the digest of its state as safetensors.

    Raises:
        WeightsError: they are not there or cannot be fetched, are damaged or of another digest,
            have no known layout, cannot serve, or are incomplete or not finite.
        ValueError: the address or the layout is none.
    """
    address = parse(uri)
    layout_named(layout)
    if isinstance(address, FromTimm):
        return _of_timm(address, uri, layout, sha256)
    if isinstance(address, OnHub):
        fetched = from_hub(address, uri)
        return load_file(
            fetched.path,
            layout,
            sha256=sha256,
            uri=uri,
            config=fetched.config,
            revision=fetched.revision,
        )
    if isinstance(address, InBucket):
        raise WeightsError(f"{uri}: fetch it to a file first; `orchestrator` does so by itself")
    assert isinstance(address, OnDisk)
    return load_file(address.path, layout, sha256=sha256, uri=uri)


def load_file(
    path: Path,
    layout: str = AUTO,
    *,
    sha256: str | None = None,
    uri: str | None = None,
    config: Path | None = None,
    revision: str | None = None,
) -> Weights:
    """As `load`, of a file; `uri` is where it came from, and what stands in errors.

    `config` is its config.json, looked for beside it where it is named as `save_pretrained` names
    weights.
    """
    uri = str(path) if uri is None else uri
    found = converted(content_of(path, sha256=sha256, shown=uri), uri, layout)
    if config is None and path.name in HUB_FILES:
        config = path.with_name(CONFIG)
    return _weights(
        found,
        uri,
        sha256 or sha256_of(path),
        config=read_config(config) if config else {},
        metadata=metadata_of(path),
        revision=revision,
    )


def _of_timm(address: FromTimm, uri: str, layout: str, sha256: str | None) -> Weights:
    state, heads = from_timm(address, uri)
    digest = hashlib.sha256(save({name: t.contiguous() for name, t in state.items()})).hexdigest()
    if sha256 not in (None, digest):
        raise WeightsError(
            f"{uri}: the sha256 of its state is {digest}, not {sha256}; timm's weights of that "
            "name were changed, or the digest is another's"
        )
    return _weights(converted(state, uri, layout), uri, digest, heads=heads)


def _weights(
    found: Converted,
    uri: str,
    sha256: str,
    *,
    heads: int | None = None,
    config: Mapping[str, Any] = MappingProxyType({}),
    metadata: Mapping[str, str] = MappingProxyType({}),
    revision: str | None = None,
) -> Weights:
    state, row = found.state, found.layout
    blocks = plain_blocks(state, uri)
    hidden, dim = blocks[block_key(0, "mlp.fc1")].shape
    depth = depth_of_blocks(blocks)
    said = described(config, found.part, dim, depth)
    provenance = Provenance(
        uri=uri,
        sha256=sha256,
        layout=row.name if found.part is None else f"{row.name}:{found.part}",
        dim=dim,
        depth=depth,
        hidden=hidden,
        origin=origin_of(uri, row.name, found.part),
        heads=heads or said.heads or heads_of(uri, dim),
        norm=said.norm or row.norm,
        activation=said.activation or row.activation,
        layer_scale=any(".ls1." in name for name in state),
        revision=revision,
    )
    return Weights(provenance, found.unused, _missing(state, depth), metadata, state)


def _missing(state: Mapping[str, Tensor], depth: int) -> tuple[str, ...]:
    inside = (f"blocks.{block}.{name}" for block in range(depth) for name in (*_NORMS, *_BIASES))
    return tuple(name for name in (*_AROUND, *inside) if name not in state)

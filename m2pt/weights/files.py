"""Reading and writing block weights: safetensors, and torch files without running their code."""

import hashlib
import os
import pickle
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_safetensors
from safetensors.torch import load_file, save
from torch import Tensor, nn

from m2pt.weights.blocks import WeightsError, block_weights
from m2pt.weights.layouts import canonical

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_HEAD_BYTES = 64


def load_blocks(path: str | os.PathLike[str], *, sha256: str | None = None) -> dict[str, Tensor]:
    """Canonical block weights from a file of any known layout, read as `content_of` does.

    Raises:
        WeightsError: the file is missing, damaged or another one, needs code to be read, has an
            unknown layout, or holds weights that are incomplete or not finite.
    """
    return canonical(content_of(path, sha256=sha256), str(path))


def content_of(
    path: str | os.PathLike[str], *, sha256: str | None = None, shown: str | None = None
) -> object:
    """What a safetensors or torch file holds, whatever its layout; its kind is told by its content.

    Torch files are read with `weights_only=True`: nothing in them is run. The arguments of a
    training (`argparse.Namespace`), which MAE and VideoMAE save beside the model, are plain values
    and allowed. With `sha256`, a file of another digest is not read at all. Errors name it `shown`,
    or by its path.

    Raises:
        WeightsError: the file is missing, damaged or another one, or needs code to be read.
    """
    file = Path(path)
    shown = shown or str(file)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise WeightsError(f"{shown}: {what}; name a .safetensors or .pth file")
    found = sha256_of(file) if sha256 else None
    if found != sha256:
        raise WeightsError(
            f"{shown}: its sha256 is {found}, not {sha256}; fetch it again, or correct the digest"
        )
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    _check_head(head, file.stat().st_size, shown)
    is_torch = head.startswith((_ZIP, _PICKLE))
    return _torch_content(file, shown) if is_torch else _safetensors_content(file, shown)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The digest of a file that is there."""
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file says of itself; nothing where it is none."""
    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return {}


def save_blocks(source: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes the block weights of a model, or given ones, as safetensors; never half a file.

    Raises:
        WeightsError: the weights break a rule.
    """
    target = Path(path)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(blocks_to_bytes(source))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def blocks_to_bytes(source: nn.Module | Mapping[str, Tensor]) -> bytes:
    """The same as `save_blocks` in memory; equal weights give equal bytes.

    Raises:
        WeightsError: the weights break a rule.
    """
    blocks = block_weights(source) if isinstance(source, nn.Module) else canonical(source, "blocks")
    return save({key: weight.cpu() for key, weight in blocks.items()})


def blocks_from_bytes(data: bytes) -> dict[str, Tensor]:
    """What `blocks_to_bytes` wrote.

    Raises:
        WeightsError: the bytes are damaged, or the weights break a rule.
    """
    try:
        return canonical(from_safetensors(data), "blocks")
    except SafetensorError as error:
        raise WeightsError(f"blocks: damaged safetensors ({error})") from error


def _check_head(head: bytes, size: int, shown: str) -> None:
    if not head:
        raise WeightsError(f"{shown}: is empty (0 bytes); fetch it again and compare its size")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(
            f"{shown}: is a web page ({size:,} bytes), saved in place of weights; "
            "fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{shown}: is a Git LFS pointer, not the weights; run `git lfs pull`")


def _safetensors_content(file: Path, shown: str) -> object:
    try:
        return load_file(file)
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(
            f"{shown}: neither whole safetensors nor a torch file ({error}); "
            "fetch it again and compare its size"
        ) from error


def _torch_content(file: Path, shown: str) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{shown}: holds objects that only code can rebuild, and no code in a file is run "
            f"({_reason(error)}); save model.state_dict() alone, best as safetensors"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in its reader, with any error
        raise WeightsError(
            f"{shown}: damaged torch file ({_reason(error)}); fetch it again and compare its size"
        ) from error


def _reason(error: Exception) -> str:
    """The line that says what is wrong, without torch's advice to run the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = (line for line in lines if "unsupported" in line.lower())
    told = next(reasons, lines[0] if lines else "")
    return told.split(". ")[0][:200] or type(error).__name__

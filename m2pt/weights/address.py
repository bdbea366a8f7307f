"""Addresses of weights. Strings only; nothing is contacted, and no torch is imported.

`hf://OWNER/NAME[@REVISION][/FILE]` is a file of a model on the Hugging Face Hub, `timm://MODEL`
what timm loads for a model of that name; `file://` and a plain path are files. `s3://` is the
orchestrator's to fetch.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

HUB, TIMM, FILE, BUCKET = "hf://", "timm://", "file://", "s3://"
_HUB = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^/\s][^\s]*[^/\s]|[^/\s]))?"
)
_TIMM = re.compile(r"timm://(?P<model>[a-z0-9][\w.-]*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class OnHub:
    """A file on the Hugging Face Hub; without `file` it is the model's weights."""

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class FromTimm:
    """Pre-trained weights by the name that timm gives them."""

    model: str


@dataclass(frozen=True)
class InBucket:
    """An object; `uri` is as it was given."""

    uri: str


@dataclass(frozen=True)
class OnDisk:
    """A file of this machine."""

    path: Path


Address = OnHub | FromTimm | InBucket | OnDisk


def parse(uri: str) -> Address:
    """What `uri` names.

    Raises:
        ValueError: it begins like an address and is none, or is of a kind that is not read.
    """
    if uri.startswith(HUB):
        return _on_hub(uri)
    if uri.startswith(TIMM):
        if found := _TIMM.fullmatch(uri):
            return FromTimm(found["model"])
        raise ValueError(
            f"a model of timm is written timm://MODEL, as in timm://vit_base_patch16_224.mae, but "
            f"it is {uri!r}"
        )
    if uri.startswith(BUCKET):
        parts = urlsplit(uri)
        if parts.netloc and parts.path.strip("/") and not parts.path.endswith("/"):
            return InBucket(uri)
        raise ValueError(f"an object is written s3://BUCKET/KEY, but it is {uri!r}")
    if uri.startswith(FILE):
        parts = urlsplit(uri)
        if parts.netloc in ("", "localhost") and parts.path.strip("/"):
            return OnDisk(Path(unquote(parts.path)))
        raise ValueError(
            f"a file is written file:///ABSOLUTE/PATH, with three slashes, but it is {uri!r}"
        )
    if _SCHEME.match(uri):
        raise ValueError(
            f"{uri!r} is of a kind that is not read: give a path, file://, s3://, hf:// or timm://"
        )
    return OnDisk(Path(uri))


def _on_hub(uri: str) -> OnHub:
    found = _HUB.fullmatch(uri)
    if found is None or ".." in uri:
        raise ValueError(
            "a file of the Hugging Face Hub is written hf://OWNER/NAME, then perhaps @REVISION, "
            f"then perhaps /FILE, but it is {uri!r}"
        )
    return OnHub(found["repo"], found["revision"], found["file"])

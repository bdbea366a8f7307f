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
        ValueError: it begins like an address and is none, or is of a kind that is not read; what
            could be a password is not repeated.
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
        return _in_bucket(uri)
    if uri.startswith(FILE):
        parts = urlsplit(uri)
        if parts.netloc in ("", "localhost") and parts.path.strip("/"):
            return OnDisk(Path(unquote(parts.path)))
        raise ValueError(
            f"a file is written file:///ABSOLUTE/PATH, with three slashes, but it is {uri!r}"
        )
    if scheme := _SCHEME.match(uri):
        raise ValueError(
            f"{scheme[0]}... is of a kind that is not read: give a path, file://, s3://, hf:// or "
            "timm://"
        )
    return OnDisk(Path(uri))


def _in_bucket(uri: str) -> InBucket:
    parts = urlsplit(uri)
    if "@" in parts.netloc or ":" in parts.netloc or parts.query:
        raise ValueError(
            "an s3:// address carries no key, secret, port or signature: write s3://BUCKET/KEY, "
            "and put credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a server of "
            "your own into AWS_ENDPOINT_URL"
        )
    if parts.netloc and parts.path.strip("/") and not parts.path.endswith("/"):
        return InBucket(uri)
    raise ValueError(f"an object is written s3://BUCKET/KEY, but it is {uri!r}")


def _on_hub(uri: str) -> OnHub:
    found = _HUB.fullmatch(uri)
    if found is None or ".." in uri:
        raise ValueError(
            "a file of the Hugging Face Hub is written hf://OWNER/NAME, then perhaps @REVISION, "
            f"then perhaps /FILE, but it is {uri!r}"
        )
    return OnHub(found["repo"], found["revision"], found["file"])

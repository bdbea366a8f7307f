"""What a storage URI says: a folder, or a bucket and a prefix in it. Nothing is contacted."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import RequestError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX_BYTES = 900


@dataclass(frozen=True)
class Folder:
    """A folder on a disk or on a file system that all nodes share; `path` is absolute."""

    path: Path


@dataclass(frozen=True)
class Bucket:
    """A prefix in an S3 bucket: "" or a path without slashes at its ends."""

    name: str
    prefix: str = ""

    @property
    def uri(self) -> str:
        """As it is written."""
        return f"s3://{self.name}/{self.prefix}".rstrip("/")


def parse(uri: str, what: str = "storage") -> Folder | Bucket:
    """A plain path, `file:///absolute/path` or `s3://bucket/prefix`; `what` is said in messages.

    Raises RequestError saying the rule; it never repeats what could be a password.
    """
    if not uri.strip():
        raise RequestError(f"{what} is empty; give a folder, e.g. ./m2pt-studies")
    if uri.startswith("s3:"):
        return _bucket(uri, what)
    if "://" not in uri:
        if uri.startswith("file:"):
            raise RequestError(f"{what} {uri!r}: write file:///absolute/path or a plain path")
        return Folder(Path(uri).expanduser().absolute())
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme != "file":
        raise RequestError(
            f"{what} {shown}: the scheme must be s3:// or file:// (or give a plain path)"
        )
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise RequestError(f"{what} {shown}: file:// takes an absolute path, as file:///srv/m2pt")
    return Folder(Path(unquote(parts.path)))


def _bucket(uri: str, what: str) -> Bucket:
    rule = "write s3://bucket/prefix"
    if "@" in uri or ":" in uri.removeprefix("s3:"):
        raise RequestError(
            f"{what}: an s3:// address carries no key, secret or port: {rule}, and put credentials"
            " into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a server of your own into"
            " AWS_ENDPOINT_URL"
        )
    if "?" in uri or "#" in uri:
        raise RequestError(
            f"{what} {uri.partition('?')[0].partition('#')[0]}: an s3:// address has no options"
            f" after ? or #: {rule}; endpoint and region come from AWS_ENDPOINT_URL and AWS_REGION"
        )
    name, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not _BUCKET.fullmatch(name):
        raise RequestError(
            f"{what} {uri!r}: {rule}; a bucket's name has 3 to 63 lower-case letters, digits, dots"
            " and hyphens"
        )
    prefix = prefix.rstrip("/")
    parts = prefix.split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts) or "\\" in prefix:
        raise RequestError(
            f"{what} {uri!r}: the prefix must not have empty, '.' or '..' parts or backslashes"
        )
    if not prefix.isprintable() or len(prefix.encode()) > _PREFIX_BYTES:
        raise RequestError(
            f"{what} {uri[:80]!r}: the prefix must be printable, of at most {_PREFIX_BYTES} bytes"
        )
    return Bucket(name, prefix)

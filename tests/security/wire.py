"""What is asked of an S3 server, seen on the wire, in the words of AWS's policies."""

import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_REQUEST = re.compile(rb"^(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/1\.1\r$", re.MULTILINE)
_PIECE = 1 << 16


@dataclass(frozen=True)
class Asked:
    """One request: an action on a resource; for a listing also of which prefix."""

    action: str
    resource: str
    prefix: str | None = None


@dataclass
class Recorder:
    """Passes every byte on to a server, unchanged, and keeps what clients sent."""

    host: str
    port: int
    _sent: list[bytearray] = field(default_factory=list)

    def requests(self) -> set[tuple[str, str]]:
        """Method and target of each request so far."""
        found = (_REQUEST.findall(bytes(sent)) for sent in self._sent)
        return {(method.decode(), target.decode()) for each in found for method, target in each}

    def asked(self) -> set[Asked]:
        """The same as a policy sees them."""
        return {as_asked(method, target) for method, target in self.requests()}

    def serve(self, listening: socket.socket) -> None:
        """Until `listening` is closed."""
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection((self.host, self.port))
                sent = bytearray()
                self._sent.append(sent)
                for one, other, kept in ((client, server, sent), (server, client, None)):
                    threading.Thread(target=_pass_on, args=(one, other, kept), daemon=True).start()


@contextmanager
def recording(endpoint: str) -> Iterator[tuple[Recorder, str]]:
    """A recorder before `endpoint`, and its own address on loopback."""
    parts = urlsplit(endpoint)
    recorder = Recorder(parts.hostname or "", parts.port or 80)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=recorder.serve, args=(listening,), daemon=True).start()
        yield recorder, f"http://127.0.0.1:{listening.getsockname()[1]}"


def _pass_on(one: socket.socket, other: socket.socket, kept: bytearray | None) -> None:
    with suppress(OSError):
        while piece := one.recv(_PIECE):
            if kept is not None:
                kept += piece
            other.sendall(piece)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def as_asked(method: str, target: str) -> Asked:
    """A request of S3's in path style as the action and the resource that a policy names."""
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not bucket:
        return Asked("s3:ListAllMyBuckets", "*")
    if not key:
        return Asked(_of_bucket(method, query), f"arn:aws:s3:::{bucket}", query.get("prefix"))
    return Asked(_of_object(method, query), f"arn:aws:s3:::{bucket}/{key}")


def _of_bucket(method: str, query: Mapping[str, str]) -> str:
    special = {
        "uploads": "s3:ListBucketMultipartUploads",
        "versions": "s3:ListBucketVersions",
        "location": "s3:GetBucketLocation",
    }
    if method in ("GET", "HEAD"):
        return next((action for word, action in special.items() if word in query), "s3:ListBucket")
    return {"PUT": "s3:CreateBucket", "DELETE": "s3:DeleteBucket"}.get(method, "s3:DeleteObject")


def _of_object(method: str, query: Mapping[str, str]) -> str:
    for word in ("acl", "tagging", "versionId", "retention", "legal-hold"):
        if word in query:
            return f"s3:{method} {word}"  # there is no such action: it is in no policy
    if "uploadId" in query and method in ("GET", "DELETE"):
        listed = "s3:ListMultipartUploadParts"
        return listed if method == "GET" else "s3:AbortMultipartUpload"
    if method in ("GET", "HEAD"):
        return "s3:GetObject"
    return "s3:DeleteObject" if method == "DELETE" else "s3:PutObject"


def policy(text: str, bucket: str, prefix: str) -> dict[str, Any]:
    """A policy of cluster/ with its names filled in."""
    filled: dict[str, Any] = json.loads(text.replace("BUCKET", bucket).replace("PREFIX", prefix))
    return filled


def allows(document: Mapping[str, Any], asked: Asked) -> bool:
    """Whether a policy lets it pass; that it denies plain http is left aside: no TLS runs here."""
    return any(
        statement["Effect"] == "Allow"
        and asked.action in statement["Action"]
        and any(fnmatchcase(asked.resource, pattern) for pattern in statement["Resource"])
        and _holds(statement.get("Condition", {}), asked)
        for statement in document["Statement"]
    )


def _holds(condition: Mapping[str, Any], asked: Asked) -> bool:
    known = {"StringLike": {"s3:prefix"}}
    for operator, keys in condition.items():
        if not set(keys) <= known.get(operator, set()):
            return False
        for patterns in keys.values():
            if asked.prefix is None or not any(fnmatchcase(asked.prefix, p) for p in patterns):
                return False
    return True

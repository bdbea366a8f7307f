"""The S3 store under faults on the way to a real server, and what probes find there."""

import http.client
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session

from orchestrator.errors import StorageError
from orchestrator.storage import clients
from orchestrator.storage.lease import Lease
from orchestrator.storage.probe import check_writable, probe
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import AlreadyThere, Store, Unreachable
from orchestrator.tracking.journal import Journal, read_events
from tests.swift import Swift, use

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
Answer = Callable[..., AWSResponse | None]


@pytest.fixture
def store(s3: str) -> S3Store:
    """It gives up soon, and uploads in parts above 5 MiB."""
    store = Store.open(s3)
    assert isinstance(store, S3Store)
    return replace(store.impatient(), part_bytes=5 * MIB)


@contextmanager
def answering(operation: str, answer: Answer) -> Iterator[None]:
    """Requests of this kind are answered by `answer`, or, where that says None, by the server."""
    events = clients.boto_client(clients.QUICK_ATTEMPTS).meta.events
    events.register(f"before-send.s3.{operation}", answer)
    try:
        yield
    finally:
        events.unregister(f"before-send.s3.{operation}", answer)


def said(status: int, body: str = "", **headers: str) -> AWSResponse:
    """An answer that no server gave."""

    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield body.encode()

    return AWSResponse("http://none", status, headers, Raw())


def test_an_upload_that_only_seems_to_succeed_is_found(store: S3Store) -> None:
    gone: Answer = lambda request, **more: said(200, ETag='"0"')  # noqa: E731  # reads as a table
    with answering("PutObject", gone), pytest.raises(StorageError, match="had no such object"):
        store.put("a", b"small")
    store.put("a", b"old")
    with answering("PutObject", gone), pytest.raises(StorageError, match="another writer"):
        store.put("a", b"new")
    with (
        answering("CompleteMultipartUpload", lambda request, **more: said(200, _COMPLETED)),
        pytest.raises(StorageError, match="had no such object"),
    ):
        store.put("b", b"x" * 6 * MIB)


_COMPLETED = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"


def test_large_objects_go_up_in_parts_and_come_back(store: S3Store, tmp_path: Path) -> None:
    parts = []
    content = bytes(range(256)) * (11 * MIB // 256) + b"end"
    (tmp_path / "file").write_bytes(content)
    with answering("UploadPart", lambda request, **more: parts.append(request.url)):
        store.put("file", tmp_path / "file")
        store.put("bytes", content, if_absent=True)
    assert len(parts) == 6
    assert store.get("file") == store.get("bytes") == content
    with pytest.raises(AlreadyThere):
        store.put("bytes", content, if_absent=True)


def test_a_conditional_put_whose_answer_got_lost_is_ours(store: S3Store) -> None:
    lost: list[int] = []

    def swallow(request: Any, **more: Any) -> AWSResponse | None:
        if lost:
            return None
        lost.append(URLLib3Session().send(request).status_code)
        return said(500)

    with answering("PutObject", swallow):
        store.put("a", b"mine", if_absent=True)
    assert lost == [200]
    assert store.get("a") == b"mine"


def test_an_outage_costs_time_and_nothing_else(s3: str, swift: Swift, tmp_path: Path) -> None:
    store = Store.open(s3)
    with (
        Lease.acquire(store, "s", heartbeat_seconds=0.5, expiry_seconds=60) as lease,
        Journal.open(store, "s", lease, spool=tmp_path) as journal,
    ):
        swift.kill()
        try:
            journal.append({"kind": "study_finished", "verdict": "in the dark"})
            assert not journal.flush(2)
        finally:
            swift.start()
        assert journal.flush(60)
        lease.check()
    assert [event["kind"] for event in read_events(store, "s")] == ["takeover", "study_finished"]


def test_a_server_that_is_away_is_told_apart(store: S3Store, swift: Swift) -> None:
    swift.kill()
    try:
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"nobody answers there: is the server up"):
            check_writable(store)
        assert time.monotonic() - began < 10
        (check,) = probe(store.uri)
        assert not check.ok
    finally:
        swift.start()
    check_writable(store)


def test_a_sound_server_passes_and_nothing_is_left(store: S3Store, swift: Swift) -> None:
    for uri in (store.uri, f"s3://{store.bucket.name}"):
        checks = probe(uri)
        assert all(check.ok for check in checks), checks
        assert [check.name for check in checks] == [
            "storage",
            "storage by boto3",
            "storage by pyarrow",
        ]
        check_writable(Store.open(uri))
    client = swift.client()
    assert "Contents" not in client.list_objects_v2(Bucket=store.bucket.name)
    assert not client.list_multipart_uploads(Bucket=store.bucket.name).get("Uploads")


def test_wrong_access_is_named_with_its_remedy(
    store: S3Store, swift: Swift, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable = f"s3://{swift.bucket(readable=True)}/p"
    reader = swift.reader_variables
    https = swift.endpoint.replace("http://", "https://")
    wrong = "another-secret-that-nobody-may-see"
    cases: list[tuple[str, dict[str, str], str, str]] = [
        (store.uri, {"AWS_SECRET_ACCESS_KEY": wrong}, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS"),
        (readable, reader, "AccessDenied", "s3:PutObject"),
        ("s3://no-such-bucket/p", {}, "NoSuchBucket", "create it"),
        (store.uri, {"AWS_ENDPOINT_URL": https}, "SSL", "export AWS_ENDPOINT_URL=http://"),
        (store.uri, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "connect", "is the server up"),
    ]
    for uri, changes, fault, remedy in cases:
        use(swift, monkeypatch, **changes)
        check = next(check for check in probe(uri) if not check.ok)
        assert fault in check.detail
        assert remedy in check.remedy
        with pytest.raises(StorageError, match=fault) as refused:
            check_writable(Store.open(uri))
        told = f"{check}{refused.value}"
        assert not [secret for secret in (wrong, *_secrets(swift)) if secret in told]


def _secrets(swift: Swift) -> tuple[str, str]:
    return swift.secret, swift.reader_secret


@contextmanager
def without_trailers(swift: Swift) -> Iterator[str]:
    """An older server: it does not know checksums that come after the body."""

    class Older(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            if "aws-chunked" in (self.headers.get("Content-Encoding") or ""):
                self.close_connection = True
                self._answer(411, {}, b"<Error><Code>MissingContentLength</Code></Error>")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            behind = http.client.HTTPConnection(swift.endpoint.removeprefix("http://"))
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    behind.putheader(name, value)
            behind.endheaders(body)
            found = behind.getresponse()
            self._answer(found.status, dict(found.headers), found.read())
            behind.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815  # names of http.server

        def log_message(self, *about: Any) -> None:
            del about

    server = ThreadingHTTPServer(("127.0.0.1", 0), Older)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_checksum_setting_that_a_server_needs_is_found(
    s3: str, swift: Swift, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_trailers(swift) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        checks = probe(s3)
        failed = [check for check in checks if not check.ok]
        assert failed[-1].name == "storage checksums"
        for variable in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            assert all(f"{variable}=when_required" in check.remedy for check in failed)
            monkeypatch.setenv(variable, "when_required")
        assert all(check.ok for check in probe(s3))


def test_no_pickle_carries_the_secret(s3: str, swift: Swift) -> None:
    files, path = clients.filesystem(s3)
    assert path == s3.removeprefix("s3://")
    carried = pickle.dumps((Store.open(s3), files))
    assert swift.secret.encode() not in carried
    assert swift.endpoint.removeprefix("http://").encode() in carried

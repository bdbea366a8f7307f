"""What a person reads when S3 says no; no server is asked."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)

from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import clients
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import AlreadyThere, Missing, Store, Unreachable

SECRET = "canary/secret+with=signs"
SETTINGS = {
    "AWS_ENDPOINT_URL": "http://s3.example.invalid",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE12345",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "eu-central-1",
}
Answer = Callable[..., AWSResponse]
Let = Callable[[Answer], None]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> S3Store:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "QUICK_ATTEMPTS", 1)
    found = Store.open("s3://bucket/prefix")
    assert isinstance(found, S3Store)
    return found.impatient()


@pytest.fixture
def let(store: S3Store) -> Iterator[Let]:
    """Has every request of the store answered so, until the test ends."""
    events = clients.boto_client(1).meta.events
    given: list[Answer] = []

    def register(answer: Answer) -> None:
        given.append(answer)
        events.register("before-send.s3", answer)

    yield register
    for answer in given:  # the client itself is kept: making one takes its time
        events.unregister("before-send.s3", answer)


def saying(status: int, code: str, message: str = "it says") -> Answer:
    """An answer with S3's own body."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()

    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield body

        def read(self, amount: int | None = None) -> bytes:
            return body

    return lambda request, **more: AWSResponse("http://none", status, {}, Raw())


@pytest.mark.parametrize(
    ("status", "code", "kind", "remedy"),
    [
        (403, "SignatureDoesNotMatch", StorageError, "check AWS_SECRET_ACCESS_KEY"),
        (403, "InvalidAccessKeyId", StorageError, "check AWS_ACCESS_KEY_ID"),
        (404, "NoSuchBucket", StorageError, "no such bucket"),
        (403, "AccessDenied", StorageError, r"allows s3:PutObject there"),
        (403, "RequestTimeTooSkewed", StorageError, "set the clock"),
        (411, "MissingContentLength", StorageError, "CHECKSUM_CALCULATION=when_required"),
        (411, "Whatever", StorageError, "CHECKSUM_CALCULATION=when_required"),
        (400, "ExpiredToken", Unreachable, "renew them, and resume"),
        (503, "SlowDown", Unreachable, "overloaded"),
        (507, "Full", Unreachable, "free some space"),
        (403, "QuotaExceeded", StorageError, "free some space"),
        (418, "Teapot", StorageError, "documentation"),
        (412, "PreconditionFailed", AlreadyThere, "already there"),
        (404, "NoSuchKey", Missing, "no such object"),
    ],
)
def test_each_fault_has_a_remedy(
    store: S3Store, let: Let, status: int, code: str, kind: type[StorageError], remedy: str
) -> None:
    let(saying(status, code, f"the secret {SECRET} is wrong"))
    with pytest.raises(StorageError, match=remedy) as refused:
        store.put("a/b", b"x")
    assert type(refused.value) is kind
    told = str(refused.value)
    assert told.startswith("cannot write s3://bucket/prefix/a/b at http://s3.example.invalid")
    assert SECRET not in told
    if not issubclass(kind, AlreadyThere | Missing):
        assert code in told
    if status == 403:
        assert "key AKIAE..." in told
    assert str(pickle.loads(pickle.dumps(refused.value))) == told


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (EndpointConnectionError(endpoint_url="x"), Unreachable, "is the server up"),
        (ConnectTimeoutError(endpoint_url="x"), Unreachable, "is the server up"),
        (ReadTimeoutError(endpoint_url="x"), Unreachable, "try again"),
        (ConnectionClosedError(endpoint_url="x"), Unreachable, "hung up"),
        (SSLError(endpoint_url="x", error="WRONG_VERSION_NUMBER"), StorageError, "http, not https"),
        (SSLError(endpoint_url="x", error="VERIFY_FAILED"), StorageError, "AWS_CA_BUNDLE"),
        (NoCredentialsError(), StorageError, "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_each_way_of_not_getting_there_has_a_remedy(
    store: S3Store, let: Let, error: Exception, kind: type[StorageError], remedy: str
) -> None:
    def fail(request: Any, **more: Any) -> AWSResponse:
        raise error

    let(fail)
    for use in (lambda: store.put("a", b""), lambda: store.get("a"), store.list):
        with pytest.raises(StorageError, match=remedy) as refused:
            use()
        assert type(refused.value) is kind


def test_a_head_without_a_body_is_asked_again_for_the_reason(store: S3Store, let: Let) -> None:
    def answer(request: Any, **more: Any) -> AWSResponse:
        if request.method == "HEAD":
            return AWSResponse(
                "http://none", 403, {}, type("Raw", (), {"stream": lambda self: []})()
            )
        return saying(403, "SignatureDoesNotMatch")(request)

    let(answer)
    with pytest.raises(StorageError, match=r"cannot look at .*SignatureDoesNotMatch"):
        store.size("a")


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://user:password@host", "ftp://host"])
def test_an_endpoint_that_is_no_address_is_refused(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(RequestError, match=r"must look like https://host:port") as refused:
        store.list()
    assert "password@" not in str(refused.value)


def test_both_clients_have_the_same_settings(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients.boto_client(1)
    assert client.meta.endpoint_url == "http://s3.example.invalid"
    assert client.meta.config.s3 == {"addressing_style": "path"}
    files, path = clients.filesystem("s3://bucket/prefix/")
    assert path == "bucket/prefix"
    assert files.region == client.meta.region_name == "eu-central-1"
    carried = pickle.dumps((store, files))
    assert b"s3.example.invalid" in carried
    assert SECRET.encode() not in carried
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert clients.boto_client(1) is not client


def test_a_key_with_its_prefix_is_not_too_long(store: S3Store) -> None:
    long = S3Store(store.bucket.__class__("bucket", "p" * 600))
    with pytest.raises(StorageError, match="at most 1024 bytes"):
        long.put("x" * 600, b"")

"""A proxy that spoils HTTP on its way: in front of Swift, of MLflow, of any server on loopback.

    with proxied(swift.endpoint) as proxy:             # or the fixture `proxied_s3`
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        rule = proxy.add(Answer(503, "SlowDown"), method="PUT", path="/state-", times=4)
        proxy.add(Reset(after=100_000), method="PUT", query={"partNumber": "2"}, nth=1)
        ...
        assert rule.hits == 4
        assert proxy.count("GET", "/blobs/") == 3
        proxy.clear()                                  # no rules any more; `seen` stays

    with proxy.failing(Answer(400, "ExpiredToken"), method="GET"):
        ...                                            # only in here

A rule matches by method and path (regular expressions: the whole method, anywhere in the unquoted
path) and query (name -> regular expression of the whole value; `uploads` and the like have the
value ""). It acts on its `nth` matching request and the `times` that follow (None: for ever). The
first rule that matches and acts wins. Requests of S3, for `path` and `query`:

    UploadPart                PUT   query={"partNumber": "2"}
    CreateMultipartUpload     POST  query={"uploads": ""}
    CompleteMultipartUpload   POST  query={"uploadId": ".*"}
    ListObjectsV2             GET   query={"list-type": "2"}

Headers, Host among them, are passed on as the client sent them: S3's signatures hold. It runs in
threads of the process that made it; other processes reach it by its endpoint. It speaks plain
HTTP/1.1 to both sides.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """The proxy answers by itself. Without `body`, as S3 says that something is wrong; with the
    status 200 and a `code`, as S3 says it where it began to answer too early."""

    status: int
    code: str = "InternalError"
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reset:
    """The connection is reset after so many bytes of the body: of the request's, or the answer's
    (`of="answer"`)."""

    after: int = 0
    of: str = "request"


@dataclass(frozen=True)
class Flip:
    """The lowest bit of one byte of the body is another one: of the answer's, or the request's
    (`of="request"`)."""

    byte: int = 0
    of: str = "answer"


@dataclass(frozen=True)
class Cut:
    """The answer's body ends after so many bytes, and the connection is closed."""

    after: int = 0
    of: str = "answer"


@dataclass(frozen=True)
class Lose:
    """The server does what it is asked; its answer never arrives: the connection is reset."""


@dataclass(frozen=True)
class Delay:
    """The request waits, and is passed on then."""

    seconds: float


@dataclass(frozen=True)
class Blackhole:
    """Nobody answers for so long; then the connection is closed."""

    seconds: float = 3600.0


Fault = Answer | Reset | Flip | Cut | Lose | Delay | Blackhole


@dataclass(frozen=True)
class Seen:
    """One request, as it came; names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    fault: Fault | None = None


@dataclass
class Rule:
    """What happens to which requests; see the module."""

    fault: Fault
    method: str
    path: str
    query: Mapping[str, str]
    nth: int
    times: int | None
    matched: int = 0
    hits: int = 0
    """On how many requests it acted."""

    def acts(self, seen: Seen) -> bool:
        """Does it act on this request? It counts."""
        if not _matches(seen, self.method, self.path, self.query):
            return False
        self.matched += 1
        if self.matched < self.nth or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


@dataclass
class Proxy:
    """See the module. Made by `proxied`."""

    upstream: tuple[str, int]
    endpoint: str = ""
    seen: list[Seen] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _rules: list[Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        fault: Fault,
        *,
        method: str = ".*",
        path: str = "",
        query: Mapping[str, str] | None = None,
        nth: int = 1,
        times: int | None = None,
    ) -> Rule:
        """From now on; see the module."""
        rule = Rule(fault, method, path, query or {}, nth, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    @contextmanager
    def failing(self, fault: Fault, **which: Any) -> Iterator[Rule]:
        """As `add`, for a while."""
        rule = self.add(fault, **which)
        try:
            yield rule
        finally:
            with self._lock:
                self._rules = [one for one in self._rules if one is not rule]

    def clear(self) -> None:
        """Pass everything on from now on."""
        with self._lock:
            self._rules.clear()

    def count(self, method: str, path: str = "", query: Mapping[str, str] | None = None) -> int:
        """How many such requests came, spoiled or not."""
        with self._lock:
            return sum(_matches(seen, method, path, query or {}) for seen in self.seen)

    def judge(self, seen: Seen) -> Fault | None:
        """What happens to this request; it is on record then."""
        with self._lock:
            fault = next((rule.fault for rule in self._rules if rule.acts(seen)), None)
            self.seen.append(Seen(seen.method, seen.path, seen.query, seen.headers, fault))
        return fault


@dataclass(frozen=True)
class ProxiedS3:
    """A prefix in a fresh bucket of Swift, and the proxy in between (fixture `proxied_s3`)."""

    uri: str
    proxy: Proxy


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of `http://host:port`, on a free port of loopback."""
    from tests.proxy_wire import Server

    parts = urlsplit(endpoint)
    assert parts.hostname
    assert parts.port
    proxy = Proxy((parts.hostname, parts.port))
    with Server(proxy) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.stopping.set()
            server.shutdown()
            thread.join()
            server.hang_up()


def _matches(seen: Seen, method: str, path: str, query: Mapping[str, str]) -> bool:
    return (
        re.fullmatch(method, seen.method) is not None
        and re.search(path, seen.path) is not None
        and all(
            name in seen.query and re.fullmatch(value, seen.query[name])
            for name, value in query.items()
        )
    )

"""The S3 store behind a network and a server that fail, as a proxy before a real one plays them.

Each of object-store.md's findings about clients is a case here: what looked like success, what
came back altered, what was away for a while.
"""

import hashlib
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.storage import blobs, clients, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import Damaged, Missing, Store, Unreachable
from tests.proxy import (
    Answer,
    Blackhole,
    Cut,
    Delay,
    Fault,
    Flip,
    Lose,
    ProxiedS3,
    Proxy,
    Reset,
    Rule,
)
from tests.swift import Swift

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
PART = {"partNumber": "2"}
COMPLETION = {"uploadId": ".*"}
LARGE = bytes(range(256)) * (11 * MIB // 256) + b"end"
REFUSED = Answer(403, "AccessDenied")
EXPIRED = Answer(400, "ExpiredToken")
SLOW_DOWN = Answer(503, "SlowDown")
CHECKSUMS = ("x-amz-checksum-", "x-amz-trailer")


@pytest.fixture
def proxy(proxied_s3: ProxiedS3) -> Proxy:
    return proxied_s3.proxy


@pytest.fixture
def store(proxied_s3: ProxiedS3) -> S3Store:
    """It gives up soon, uploads in parts of 5 MiB and reads in ranges of 2 MiB."""
    store = Store.open(proxied_s3.uri)
    assert isinstance(store, S3Store)
    return replace(store.impatient(), part_bytes=5 * MIB, range_bytes=2 * MIB)


def patient(store: S3Store) -> S3Store:
    """It repeats requests as often as a worker does."""
    return replace(store, attempts=clients.ATTEMPTS)


def trial(store: Store) -> TrialCheckpoints:
    return TrialCheckpoints(store, "s", "t", Accepted(1))


UPLOADS: dict[str, tuple[Fault, dict[str, Any]]] = {
    "part refused": (REFUSED, {"method": "PUT", "query": PART}),
    "part put off": (SLOW_DOWN, {"method": "PUT", "query": PART}),
    "part reset": (Reset(after=100_000), {"method": "PUT", "query": PART}),
    "part altered": (Flip(100_000, of="request"), {"method": "PUT", "query": PART}),
    "credentials expired": (EXPIRED, {"method": "PUT", "query": PART}),
    "completion 500": (Answer(500), {"method": "POST", "query": COMPLETION}),
    "completion 200": (Answer(200), {"method": "POST", "query": COMPLETION}),
    "completion reset": (Reset(), {"method": "POST", "query": COMPLETION}),
    "bucket full": (Answer(403, "QuotaExceeded"), {"method": "POST", "query": {"uploads": ""}}),
    "manifest refused": (REFUSED, {"method": "PUT", "path": "manifest.json"}),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_a_failed_upload_never_becomes_a_checkpoint(
    store: S3Store, proxy: Proxy, name: str
) -> None:
    fault, which = UPLOADS[name]
    own = trial(store)
    before = own.save(1, {"state.safetensors": b"old"}, {})
    with proxy.failing(fault, **which) as rule, pytest.raises(StorageError, match="cannot write"):
        own.save(2, {"state.safetensors": LARGE}, {})
    assert rule.hits
    assert own.latest() == before
    assert own.load_latest() == (before, {"state.safetensors": b"old"})
    again = own.save(2, {"state.safetensors": LARGE}, {})
    assert own.load_latest() == (again, {"state.safetensors": LARGE})
    client = clients.boto_client()
    assert not client.list_multipart_uploads(Bucket=store.bucket.name).get("Uploads")


ONCE: dict[str, tuple[Fault, dict[str, Any]]] = {
    "overload": (SLOW_DOWN, {"times": 2}),
    "part reset": (Reset(after=100_000), {"method": "PUT", "query": PART, "times": 2}),
    "part's answer lost": (Lose(), {"method": "PUT", "query": PART, "times": 1}),
    "completion lost": (Lose(), {"method": "POST", "query": COMPLETION, "times": 1}),
    "completion 200 once": (Answer(200), {"method": "POST", "query": COMPLETION, "times": 1}),
    "manifest's answer lost": (Lose(), {"method": "PUT", "path": "manifest.json", "times": 1}),
    "slow": (Delay(0.2), {}),
    "range cut": (Cut(after=MIB), {"method": "GET", "path": "state-", "times": 3}),
    "range reset": (Reset(MIB, of="answer"), {"method": "GET", "path": "state-", "times": 3}),
    "range refused": (SLOW_DOWN, {"method": "GET", "path": "state-", "nth": 3, "times": 2}),
    "bit on its way down": (Flip(MIB), {"method": "GET", "path": "state-", "nth": 2, "times": 1}),
}


@pytest.mark.parametrize("name", ONCE)
def test_what_passes_costs_time_and_nothing_else(store: S3Store, proxy: Proxy, name: str) -> None:
    fault, which = ONCE[name]
    own = trial(patient(store))
    rule = proxy.add(fault, **which)
    manifest = own.save(1, {"state.safetensors": LARGE}, {})
    assert own.load_latest() == (manifest, {"state.safetensors": LARGE})
    assert rule.hits
    uploads = clients.boto_client().list_multipart_uploads(Bucket=store.bucket.name)
    assert not uploads.get("Uploads")


def test_a_completion_asked_for_twice_on_a_server_that_forgets_it(
    store: S3Store, proxy: Proxy
) -> None:
    proxy.add(Lose(), method="POST", query=COMPLETION, times=1)
    gone: Rule = proxy.add(Answer(404, "NoSuchUpload"), method="POST", query=COMPLETION)
    store.put("a", LARGE)
    assert gone.hits == 1
    assert store.get("a") == LARGE
    with pytest.raises(Unreachable, match=r"NoSuchUpload.*try again"):
        store.put("b", LARGE)
    assert not store.exists("b")


def test_a_large_object_is_read_in_ranges_each_once(
    store: S3Store, proxy: Proxy, tmp_path: Path
) -> None:
    sha256 = blobs.put(store, LARGE)
    proxy.seen.clear()
    assert blobs.fetch(store, sha256, tmp_path).read_bytes() == LARGE
    asked = [seen.headers["range"] for seen in proxy.seen if seen.method == "GET"]
    assert sorted(asked) == sorted(
        f"bytes={start}-{min(start + 2 * MIB, len(LARGE) if start else 2 * MIB) - 1}"
        for start in range(0, len(LARGE), 2 * MIB)
    )
    store.put("empty", b"")
    store.put("exact", LARGE[: 4 * MIB])
    assert store.get("empty") == b""
    assert store.get("exact") == LARGE[: 4 * MIB]
    with pytest.raises(Missing):
        store.get("nothing")


def test_only_what_broke_off_is_asked_for_again(store: S3Store, proxy: Proxy) -> None:
    store = replace(patient(store), range_bytes=6 * MIB)
    store.put("a", LARGE)
    proxy.seen.clear()
    proxy.add(Reset(5 * MIB, of="answer"), method="GET", nth=2, times=1)
    assert store.get("a") == LARGE
    asked = [seen.headers["range"] for seen in proxy.seen if seen.method == "GET"]
    assert asked[2:] == [f"bytes={10 * MIB}-{len(LARGE) - 1}"]


def test_a_server_that_knows_no_ranges_is_read_all_the_same(store: S3Store, proxy: Proxy) -> None:
    proxy.add(Answer(200, body=LARGE, headers={"ETag": '"all"'}), method="GET")
    assert store.get("a") == LARGE
    proxy.clear()
    store.put("a", LARGE)
    proxy.add(Answer(200, body=LARGE, headers={"ETag": '"all"'}), method="GET", nth=2)
    with pytest.raises(StorageError, match="does not know ranges"):
        store.get("a")


def test_a_large_object_that_is_replaced_while_it_is_read_is_not_mixed(store: S3Store) -> None:
    store = replace(store, range_bytes=MIB // 4)  # most are not asked for at first
    store.put("a", LARGE)
    reading = store.chunks("a")
    next(reading)
    store.put("a", LARGE[::-1])
    with pytest.raises(StorageError, match="was replaced while it was read"):
        b"".join(reading)


@pytest.mark.parametrize("size", [1000, len(LARGE)])
def test_a_bit_that_flips_is_found_on_reading(
    store: S3Store, proxy: Proxy, swift: Swift, tmp_path: Path, size: int
) -> None:
    content = LARGE[:size]
    sha256 = blobs.put(store, content)
    key = layout.blob(sha256)
    with proxy.failing(Flip(byte=500), method="GET"):
        with pytest.raises(Damaged, match=sha256):
            store.get(key)
        with pytest.raises(Damaged, match=sha256):
            store.get_known(key, sha256)
        with pytest.raises(Damaged, match="hand in the weights again"):
            blobs.fetch(store, sha256, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert blobs.fetch(store, sha256, tmp_path).read_bytes() == content

    own = trial(store)
    before = own.save(1, {"state.safetensors": b"old"}, {})
    manifest = own.save(2, {"state.safetensors": content}, {})
    file = manifest.files["state.safetensors"]
    where = {"Bucket": store.bucket.name, "Key": f"{store.bucket.prefix}/{file.key}"}
    kept = swift.client().head_object(**where)["Metadata"]
    altered = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    kept |= {"m2pt-sha256": hashlib.sha256(altered).hexdigest()}  # only the manifest knows better
    swift.client().put_object(**where, Body=altered, Metadata=kept)
    with pytest.raises(Damaged, match=file.sha256):
        own.load(manifest)
    heard: list[str] = []
    assert own.load_latest(heard.append) == (before, {"state.safetensors": b"old"})
    assert file.sha256 in heard[0]


def test_what_is_cut_short_for_ever_is_not_given_in_part(store: S3Store, proxy: Proxy) -> None:
    store.put("a", LARGE)
    proxy.add(Cut(after=1000), method="GET")
    with pytest.raises(Unreachable, match="cannot read s3://"):
        store.get("a")


def test_expired_credentials_are_a_reason_to_wait(store: S3Store, proxy: Proxy) -> None:
    own = trial(store)
    first = own.save(1, {"state.safetensors": LARGE}, {})
    with proxy.failing(EXPIRED):
        for call in (
            lambda: own.save(2, {"state.safetensors": LARGE}, {}),
            lambda: own.load(first),
            own.latest,
        ):
            with pytest.raises(Unreachable, match="the credentials have expired: renew them"):
                call()
    assert own.save(2, {"state.safetensors": LARGE}, {}).step == 2


def test_a_server_that_swallows_requests_is_given_up(
    store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "READ_SECONDS", 1)
    clients.forget_clients()
    store.put("a", b"x")
    proxy.add(Blackhole())
    began = time.monotonic()
    with pytest.raises(Unreachable, match="too slow, or a firewall swallows"):
        store.get("a")
    assert 2 <= time.monotonic() - began < 6
    proxy.clear()
    clients.forget_clients()


def _both(uri: str, sent: Any) -> None:
    """In a process of its own: what each client is set to; each writes, and the other reads."""
    files, path = clients.filesystem(uri)
    store = Store.open(uri)
    with files.open_output_stream(f"{path}/by-pyarrow") as stream:
        stream.write(b"pyarrow")
    store.put("by-boto3", b"boto3")
    with files.open_input_file(f"{path}/by-boto3") as file:
        assert file.read() == b"boto3"
    assert store.get("by-pyarrow") == b"pyarrow"
    config, (_, (arrow,)) = clients.boto_client().meta.config, files.__reduce__()
    sent.send(
        {
            "boto3": (config.connect_timeout, config.read_timeout, config.region_name),
            "pyarrow": (arrow["connect_timeout"], arrow["request_timeout"], arrow["region"]),
        }
    )


def _spawned(uri: str) -> dict[str, Any]:
    """`_both` in a process that has nothing but the environment, as a worker of Ray has."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_both, args=(uri, there))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    finally:
        process.join()
        here.close()
    assert process.exitcode == 0
    return found


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_both_clients_of_a_worker_have_the_same_settings(
    store: S3Store,
    proxy: Proxy,
    swift: Swift,
    monkeypatch: pytest.MonkeyPatch,
    checksums: str,
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", checksums)
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", checksums)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    times = 3 if checksums == "when_required" else 0  # more than pyarrow's own three attempts take
    for name in ("boto", "pyarr"):
        proxy.add(SLOW_DOWN, method="PUT", path=name, times=times)
    found = _spawned(store.uri)
    assert found["boto3"] == found["pyarrow"]
    assert sum(seen.fault == SLOW_DOWN for seen in proxy.seen) == 2 * times
    by: dict[str, set[bool]] = {"Boto3": set(), "aws-sdk-cpp": set()}
    for seen in proxy.seen:
        client = next(name for name in by if name in seen.headers["user-agent"])
        assert f"Credential={swift.access_key}/" in seen.headers["authorization"]
        if seen.method == "PUT":
            by[client].add(any(name.startswith(CHECKSUMS) for name in seen.headers))
    assert by == {client: {checksums == "when_supported"} for client in by}

"""cluster/iam-prefix.json is the least that a study needs, measured at a real S3 server."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m2pt.data.config import DataConfig
from m2pt.data.describe import describe
from orchestrator.errors import StorageError
from orchestrator.storage import blobs
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.foreign import ForeignFolder
from orchestrator.storage.lease import Lease
from orchestrator.storage.probe import check_writable, probe
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.unfinished import unfinished
from orchestrator.storage.uri import AlreadyThere, Store
from orchestrator.tracking.journal import Journal, read_events
from tests.contract.test_s3 import answering, said
from tests.contract.wrong_input import table
from tests.security.wire import Asked, allows, as_asked, policy, recording
from tests.swift import Swift, use

MIB = 2**20
TEXT = (Path(__file__).parents[2] / "cluster" / "iam-prefix.json").read_text()
PREFIX = "team/studies"


def _denied(request: Any, **more: Any) -> Any:
    return said(403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")


def everything(store: S3Store, folder: Path) -> None:
    """What is ever asked of a bucket, by each of the two clients."""
    small = replace(store.impatient(), part_bytes=5 * MIB)
    for key, content in (("small", b"1"), ("large", b"x" * 6 * MIB)):
        small.put(key, content)
        assert small.get(key) == content
    with pytest.raises(AlreadyThere):
        small.put("small", b"2", if_absent=True)
    assert not small.exists("nothing")
    with answering("UploadPart", _denied), pytest.raises(StorageError):
        small.put("aborted", b"x" * 6 * MIB)
    small.delete("large")
    assert unfinished(store) == []
    with answering("ListMultipartUploads", _denied):
        assert unfinished(small) is None
    blobs.fetch(store, blobs.put(store, b"weights"), folder / "cache")
    trial = TrialCheckpoints(store, "s", "t", Accepted(1))
    for step in (1, 2):
        trial.save(step, {"state.safetensors": b"state"}, {})
    assert trial.prune()
    assert trial.load_latest() is not None
    with (
        Lease.acquire(store, "s") as lease,
        Journal.open(store, "s", lease, spool=folder / "spool") as journal,
    ):
        journal.append({"kind": "study_stopped", "why": "a test"})
    assert read_events(store, "s")
    check_writable(store)
    assert all(check.ok for check in probe(store.uri))
    table(name="table.parquet")(folder)
    store.put("data/table.parquet", folder / "table.parquet")
    assert describe(DataConfig(source=f"{store.uri}/data/table.parquet")).classes == 2
    source = ForeignFolder(f"{store.uri}/data")
    assert [file.path for file in source.list().files] == ["table.parquet"]
    assert source.read("table.parquet")


@pytest.mark.slow
def test_what_is_asked_is_what_is_allowed(
    swift: Swift, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = swift.bucket()
    with recording(swift.endpoint) as (recorder, address):
        use(swift, monkeypatch, AWS_ENDPOINT_URL=address)
        store = Store.open(f"s3://{bucket}/{PREFIX}")
        assert isinstance(store, S3Store)
        everything(store, tmp_path)
        asked = recorder.asked()
    document = policy(TEXT, bucket, PREFIX)
    refused = {one for one in asked if not allows(document, one)}
    # what `gc` would like to see of the whole bucket: it does without, below
    assert {one.action for one in refused} == {"s3:ListBucketMultipartUploads"}
    asked -= refused
    for number, statement in enumerate(document["Statement"]):
        for action in statement["Action"] if statement["Effect"] == "Allow" else ():
            less = copy.deepcopy(document)
            less["Statement"][number]["Action"].remove(action)
            assert any(not allows(less, one) for one in asked), f"{action} is allowed for nothing"


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", "/b/team/studies/x", True),
        ("HEAD", "/b/team/studies/blobs/sha256/00/0", True),
        ("PUT", "/b/team/studies/x?partNumber=1&uploadId=u", True),
        ("POST", "/b/team/studies/x?uploads", True),
        ("DELETE", "/b/team/studies/x?uploadId=u", True),
        ("GET", "/b?list-type=2&prefix=team%2Fstudies%2Fjournal%2F", True),
        ("GET", "/b?list-type=2&prefix=team%2Fstudies", True),
        ("GET", "/b?list-type=2&prefix=team%2F", False),
        ("GET", "/b?list-type=2", False),
        ("HEAD", "/b", False),
        ("GET", "/b?uploads&prefix=team%2Fstudies%2F", False),
        ("GET", "/b?location", False),
        ("GET", "/b/team/other/x", False),
        ("PUT", "/b/team/studies-of-others/x", False),
        ("DELETE", "/c/team/studies/x", False),
        ("PUT", "/b/team/studies/x?acl", False),
        ("GET", "/b/team/studies/x?versionId=1", False),
        ("PUT", "/b", False),
        ("DELETE", "/b", False),
        ("GET", "/", False),
    ],
)
def test_what_is_none_of_ours_is_not_allowed(method: str, target: str, allowed: bool) -> None:
    assert allows(policy(TEXT, "b", PREFIX), as_asked(method, target)) is allowed


def test_no_policy_allows_nothing() -> None:
    assert not allows({"Statement": []}, Asked("s3:GetObject", "arn:aws:s3:::b/team/studies/x"))

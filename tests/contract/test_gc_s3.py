"""`orchestrator gc` on a real S3 server."""

import json
import time
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.garbage import DAY_SECONDS, collect, garbage, inventory
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.lease import Lease
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import Store
from tests.swift import Swift


@pytest.mark.slow
def test_a_bucket_is_collected_as_a_folder_is(
    s3: str, swift: Swift, capsys: pytest.CaptureFixture[str]
) -> None:
    def gc(*arguments: str) -> dict[str, Any]:
        assert main(["gc", s3, *arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    store = Store.open(s3)
    assert isinstance(store, S3Store)
    assert main(["gc", s3]) == 2
    assert "neither studies nor blobs lie there" in capsys.readouterr().err
    needed, free = blobs.put(store, b"needed"), blobs.put(store, b"free")
    trial = TrialCheckpoints(store, "s", "t", Accepted(1))
    trial.save(1, {"state.safetensors": b"state"}, {"inputs": {"target": needed}})
    half = f"{layout.checkpoint('s', ManifestKey('t', 0, 1))}/state-0.safetensors"
    store.put(half, b"half")
    begun = swift.client().create_multipart_upload(
        Bucket=store.bucket.name, Key=f"{store.bucket.prefix}/{layout.blob('0' * 64)}"
    )
    with Lease.acquire(store, "s", heartbeat_seconds=0.2):
        assert main(["gc", s3, "--yes", "--grace", "0"]) == 2
        assert "study 's' is already running" in capsys.readouterr().err
    assert gc()["blobs"] == []
    assert gc()["young"] == 3
    shown = gc("--grace", "0")
    assert [one["key"] for one in shown["blobs"]] == [layout.blob(free)]
    assert [one["key"] for one in shown["leftovers"]] == [half]
    assert store.exists(layout.blob(free))
    assert {**gc("--grace", "0", "--yes"), "deleted": False} == shown
    keys = [entry.key for entry in store.list()]
    assert layout.blob(free) not in keys
    assert half not in keys
    assert layout.blob(needed) in keys
    assert trial.load_latest() is not None
    found = inventory(store)
    assert found.unfinished_told
    rubbish = garbage(found, {}, now=time.time() + DAY_SECONDS + 60, grace_seconds=0.0)
    assert [one.upload for one in rubbish.unfinished] == [begun["UploadId"]]
    collect(store, rubbish, lambda: None)
    collect(store, rubbish, lambda: None)
    assert inventory(store).unfinished == ()

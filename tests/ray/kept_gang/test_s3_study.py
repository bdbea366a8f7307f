"""A study on a real S3 server and a real MLflow server, read back with the plain clients."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, load_file

from orchestrator.cli import main
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold
from tests.contract.mlflow_setup import Server
from tests.ray.kept_gang.kept import Kept
from tests.studies import (
    check_each_trial_ended_once,
    select,
    verb,
)
from tests.swift import Swift, use
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BORROWING = """
name: borrowing
data: {source: digits, limit: 400}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
auxiliaries:
  audio: {pretrain: {data: {source: tones}, tokenizer: {patch: 8}, epochs: 1}}
training: {epochs: 2, batch_size: 50}
resources: {concurrent_trials: 1}
search:
  trials: 1
  seeds: 1
  confirm: 0
  scheduler: {kind: none}
  space: {pathway.auxiliary: {grid: [audio]}}
"""
STUDY = "studies/borrowing"


@dataclass(frozen=True)
class Searched:
    """A finished search, and the plain clients' view of it."""

    folder: Path
    server: Swift
    bucket: str
    mlflow: Server
    out: str
    err: str

    @property
    def storage(self) -> str:
        return f"s3://{self.bucket}/team a"

    @property
    def tracking(self) -> str:
        return self.mlflow.uri

    @property
    def command(self) -> list[str]:
        places = [f"storage={self.storage}", f"tracking={self.tracking}"]
        return ["search", "borrowing.yaml", "--set", places[0], "--set", places[1]]

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(Store.open(self.storage), "borrowing")

    def objects(self) -> dict[str, bytes]:
        """All of the bucket, by boto3 alone; keys as under the prefix."""
        client = self.server.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        assert all(key.startswith("team a/") for key in keys)
        return {
            key.removeprefix("team a/"): client.get_object(Bucket=self.bucket, Key=key)[
                "Body"
            ].read()
            for key in keys
        }


@pytest.fixture(scope="module")
def searched(
    swift: Swift, mlflow_server: Server, kept: Kept, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Searched]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "borrowing.yaml").write_text(BORROWING)
    with pytest.MonkeyPatch.context() as patch:
        use(swift, patch)
        found = Searched(folder, swift, swift.bucket(), mlflow_server, "", "")
        code, out, err = kept.said(folder, *found.command)
        assert code == 0, f"{out}\n{err}"
        yield replace(found, out=out, err=err)


def test_everything_is_in_the_bucket(searched: Searched) -> None:
    objects, happened = searched.objects(), searched.events
    check_each_trial_ended_once(happened)
    assert b"borrowing" in objects[f"{STUDY}/experiment.yaml"]
    assert json.loads(objects[f"{STUDY}/plan.json"])["trials"] == 2
    assert f"{STUDY}/journal/000001-000000.jsonl" in objects
    assert f"{STUDY}/lease/000001.json" in objects
    assert b"<html" in objects[f"{STUDY}/report/report.html"]
    kept = [key for key in objects if key.endswith("/manifest.json")]
    assert len({json.loads(objects[key])["trial"] for key in kept}) == 2
    assert set(kept) <= {event["key"] for event in select(happened, "checkpoint")}
    for key in kept:
        for file in json.loads(objects[key])["files"].values():
            content = objects[f"{key.rpartition('/')[0]}/{file['file']}"]
            assert len(content) == file["size"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
    for key, content in objects.items():
        if key.startswith("blobs/"):
            assert hashlib.sha256(content).hexdigest() == key.rpartition("/")[2]
    (exported,) = select(happened, "exported")
    assert load(objects[f"{exported['key']}/model.safetensors"])


def test_everything_is_in_mlflow(searched: Searched) -> None:
    check_mlflow(searched.tracking, "borrowing", fold(searched.events))


def test_the_same_command_again_trains_nothing(searched: Searched) -> None:
    before = searched.events
    again = verb(searched.folder, *searched.command)
    assert again["already_done"]
    assert searched.events == before
    for place in ("study", "report", "model"):
        assert again["places"][place].startswith(f"{searched.storage}/{STUDY}/".rstrip("/"))


def test_verbs_work_from_the_bucket_alone(
    searched: Searched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def printed(verb: str, *more: str) -> Any:
        study = [verb, "borrowing", "--storage", searched.storage, "--json", *more]
        assert main(study) == 0
        return json.loads(capsys.readouterr().out)

    assert printed("status")["status"] == "finished"
    assert printed("report", "--to", "report")["status"] == "finished"
    assert (tmp_path / "report" / "report.html").is_file()
    proof = printed("export", "--to", "model")["proof"]
    assert proof["probe"]["relative_difference"] <= 1e-5
    assert load_file(tmp_path / "model" / "model.safetensors")
    assert printed("ui")["tracking"] == searched.tracking


def test_no_secret_is_written_anywhere(searched: Searched) -> None:
    secret = searched.server.secret.encode()
    written = {"stdout": searched.out.encode(), "stderr": searched.err.encode()}
    written |= searched.objects()
    written |= {
        str(file): file.read_bytes()
        for folder in (searched.folder, searched.mlflow.folder)
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert f"{STUDY}/plan.json" in written
    assert str(searched.mlflow.database) in written
    assert not [name for name, content in written.items() if secret in content]

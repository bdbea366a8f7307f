"""`data import` from and to a real S3 server, its process killed on the way."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.storage.uri import Store
from tests.importing_setup import content, image_folder, run
from tests.swift import Swift, use

pytestmark = pytest.mark.slow

OPTIONS = ("--size", "224", "--part-mib", "1")  # six rows a part


def uploaded(folder: Path, uri: str) -> str:
    """The files of a folder as objects under a prefix."""
    store = Store.open(uri)
    for path, data in content(folder).items():
        store.put(path, data)
    return uri


def objects(uri: str) -> dict[str, bytes]:
    store = Store.open(uri)
    return {entry.key: store.get(entry.key) for entry in store.list()}


def test_killed_and_given_again_it_is_as_if_nothing_had_happened(
    tmp_path: Path, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = image_folder(tmp_path / "photos", 20)
    source, out = uploaded(photos, f"{s3}/photos"), f"{s3}/set"
    command = ["data", "import", "images", source, out, *OPTIONS]
    process = subprocess.Popen([sys.executable, "-m", "orchestrator", *command])
    deadline = time.monotonic() + 120
    while not Store.open(out).list("progress"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    assert not Store.open(out).exists("dataset.json")
    code, said = run(capsys, *command[1:])
    assert (code, said["rows"]) == (0, {"train": 32, "test": 8})
    assert 1 <= said["parts_before"] < said["parts"] == 8

    assert run(capsys, "import", "images", photos, tmp_path / "set", *OPTIONS)[0] == 0
    local, remote = content(tmp_path / "set"), objects(out)
    del local["import.json"], remote["import.json"]  # they hold the times of change
    assert remote == local
    code, shown = run(capsys, "show", out, "--verify")
    assert (code, shown["digest"], shown["verified"]) == (0, said["digest"], True)


def test_one_file_in_a_bucket(tmp_path: Path, s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    photos = image_folder(tmp_path / "photos")
    out = f"{s3}/set.parquet"
    code, said = run(capsys, "import", "images", photos, out, "--size", "8")
    assert (code, list(objects(s3))) == (0, ["set.parquet"])
    assert run(capsys, "import", "images", photos, out, "--size", "8")[1]["parts_before"] == 2
    assert run(capsys, "show", out)[1]["digest"] == said["digest"]


@pytest.mark.parametrize(
    ("source", "changes", "exit_code", "told"),
    [
        ("s3://no-such-bucket-here/a", {}, 3, "there is no such bucket there"),
        ("{s3}/nothing", {}, 2, "no such file or folder"),
        ("{s3}/a", {"AWS_SECRET_ACCESS_KEY": "wrong-canary"}, 3, "check AWS_"),
        ("{s3}/a", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 3, "AWS_ENDPOINT_URL"),
    ],
)
def test_a_source_that_is_not_there(
    swift: Swift,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    changes: dict[str, str],
    exit_code: int,
    told: str,
) -> None:
    use(swift, monkeypatch, **changes)
    code, said = run(capsys, "import", "images", source.format(s3=s3), tmp_path / "set")
    assert (code, told in said["error"]) == (exit_code, True), said
    assert "wrong-canary" not in said["error"]
    assert not (tmp_path / "set").exists()

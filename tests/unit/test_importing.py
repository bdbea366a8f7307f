"""`data import` and `data show`: what is written, read back, gone on with, and refused."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2pt.data.config import DataConfig
from m2pt.data.load import describe, load
from m2pt.data.schema import DataError
from m2pt.data.write import read_rows
from orchestrator.errors import StorageError
from orchestrator.storage.folder import FolderStore
from tests.importing_setup import (
    CLASSES,
    clip,
    content,
    image_folder,
    mesh,
    npy,
    png,
    run,
    wav,
    write,
)

pytestmark = pytest.mark.slow

SMALL = ("--size", 8, "--part-mib", 1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "photos")


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos in so small parts that there are three."""
    from orchestrator.importing.images import Images

    monkeypatch.setattr(Images, "typical_bytes", 2**19)
    return image_folder(tmp_path / "photos", 3)


def files_of(kind: str) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    if kind == "audio":
        return [("wav", wav(rng.uniform(-1, 1, 900), 8000, k)) for k in ("WAV", "FLAC")] * 2
    if kind == "videos":
        return [("mp4", clip([10 * n] * 6)) for n in range(4)]
    clouds = [("npy", npy(rng.normal(size=(40, 3)))) for _ in range(2)]
    return [*clouds, ("ply", mesh("ply")), ("off", mesh("off"))]


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        ("audio", ("--seconds", 0.2, "--sample-rate", 8000), None),
        ("videos", ("--frames", 4, "--size", 16), (3, 4, 16, 16)),
        ("points", ("--points", 32), (32, 3)),
    ],
)
def test_each_kind_is_read_back(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    options: tuple[Any, ...],
    shape: tuple[int, ...] | None,
) -> None:
    for name in CLASSES:
        for number, (suffix, made) in enumerate(files_of(kind)):
            write(tmp_path / "in" / name / f"{number}.{suffix}", made)
    for name in ("set", "set.parquet"):
        code, said = run(capsys, "import", kind, tmp_path / "in", tmp_path / name, *options)
        assert (code, said["rows"]) == (0, {"train": 6, "test": 2})
        data = load(DataConfig(str(tmp_path / name), validation=0.3))
        assert shape is None or data.info.shape == shape
        assert data.info.class_names == CLASSES
        batch, labels = data.test.batch(range(2))
        assert batch.isfinite().all()
        assert sorted(labels.tolist()) == [0, 1]


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "png"])
def test_encoded_images_are_read_back(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    out = tmp_path / "set"
    words = ("--size", 8, "--encoding", encoding, "--group-by", r"/(\d)\.")
    code, said = run(capsys, "import", "images", photos, out, *words)
    assert (code, said["encoding"], said["rows"]) == (0, encoding, {"train": 10, "test": 2})
    data = load(DataConfig(str(out), validation=0.3))
    assert data.info.shape == (3, 8, 8)
    rows = [row for part in sorted(out.glob("*.parquet")) for row in read_rows(part)]
    assert {row.group for row in rows if row.split == "test"} == {rows[-1].group}
    held = data.validation.labels.tolist()
    assert held.count(0) == held.count(1) > 0  # a group has one of each class


def test_images_come_back_as_they_were(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out = tmp_path / "set"
    code, said = run(capsys, "import", "images", photos, out, *SMALL)
    assert code == 0
    assert said["classes"] == {name: {"train": 5, "test": 1} for name in CLASSES}
    described = json.loads((out / "dataset.json").read_text())
    assert described["format"] == 1
    assert described["classes"] == described["dataset"]["classes"] == list(CLASSES)
    assert described["rows"] == {"train": 10, "test": 2}
    rows = [row for part in described["parts"] for row in read_rows(out / part["name"])]
    assert len(rows) == 12
    for row in rows:
        assert row.id == row.source_path
        assert row.data == np.asarray(Image.open(photos / row.id)).tobytes()
        assert CLASSES[row.label] == row.id.split("/")[0]
    assert set(content(out)) == {
        "dataset.json", "import.json", "part-00000.parquet", "part-00001.parquet"
    }  # fmt: skip


def test_the_digest_is_of_the_rows_however_they_are_stored(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = {
        run(capsys, "import", "images", photos, tmp_path / name, *SMALL)[1]["digest"]
        for name in ("folder", "file.parquet")
    }
    for name in ("folder", "file.parquet"):
        code, shown = run(capsys, "show", tmp_path / name, "--verify")
        assert code == 0
        assert shown["verified"]
        digests.add(shown["digest"])
        assert shown["classes"] == {c: {"train": 5, "test": 1} for c in CLASSES}
    assert len(digests) == 1
    other = run(capsys, "import", "images", photos, tmp_path / "b", *SMALL, "--seed", 1)
    assert other[1]["digest"] not in digests
    assert not (tmp_path / "file.parquet.import").exists()


@pytest.mark.parametrize("name", ["set", "set.parquet"])
def test_killed_at_any_write_the_same_command_goes_on(
    many: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Every write in turn is the last one: it fails, or it is done and nobody is told."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here
    command = ("import", "images", many)
    options = ("--size", 8, "--part-mib", 1, "--workers", 1)
    assert run(capsys, *command, tmp_path / "whole" / name, *options)[0] == 0
    wanted = content(tmp_path / "whole")
    out = tmp_path / "cut" / name
    for kill_at in itertools.count(1):
        for done in (False, True):
            shutil.rmtree(out.parent, ignore_errors=True)
            with monkeypatch.context() as patched:
                patched.setattr(FolderStore, "put", _killed(kill_at, done=done))
                if run(capsys, *command, out, *options)[0] == 0:
                    assert kill_at == 9  # after the request, three parts with records, the end
                    return
            code, said = run(capsys, *command, out, *options)
            assert (code, said["parts"]) == (0, 3)
            assert said["parts_before"] == min(3, max(0, kill_at - 2 + done) // 2)
            assert content(out.parent) == wanted


def _killed(at: int, *, done: bool) -> Callable[..., None]:
    """A put that raises at its `at`-th call, after it has written when `done`."""
    put, calls = FolderStore.put, itertools.count(1)

    def failing(store: FolderStore, key: str, data: Any, **how: Any) -> None:
        last = next(calls) == at
        if done or not last:
            put(store, key, data, **how)
        if last:
            raise StorageError("killed")

    return failing


def test_the_same_command_again_has_nothing_to_do(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("set", "set.parquet"):
        first = run(capsys, "import", "images", photos, tmp_path / name, *SMALL)[1]
        before = content(tmp_path)
        code, again = run(capsys, "import", "images", photos, tmp_path / name, *SMALL)
        assert code == 0
        assert content(tmp_path) == before
        assert again["parts_before"] == again["parts"]
        assert again["digest"] == first["digest"]


@pytest.mark.parametrize("name", ["set", "set.parquet"])
def test_another_request_is_refused_until_restart(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / name
    assert run(capsys, "import", "images", photos, out, *SMALL)[0] == 0
    before = content(tmp_path)
    code, said = run(capsys, "import", "images", photos, out, "--size", 4)
    assert code == 2
    assert "a finished import of another request: --part-mib was 1.0 and is 64.0; " in said["error"]
    assert "--size was 8 and is 4" in said["error"]
    assert "--restart" in said["error"]
    extra = write(photos / "cat/extra.png", png(np.zeros((9, 9, 3), np.uint8)))
    code, said = run(capsys, "import", "images", photos, out, *SMALL)
    assert (code, "number of files was 12 and is 13" in said["error"]) == (2, True)
    extra.unlink()
    file = photos / "cat/0.png"
    old = file.stat()
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(0, old.st_mtime_ns + 10**9))
    code, said = run(capsys, "import", "images", photos, out, *SMALL)
    assert (code, "a file's name, size or time of change is another" in said["error"]) == (2, True)
    assert {k: v for k, v in content(tmp_path).items() if k in before} == before
    code, said = run(capsys, "import", "images", photos, out, "--size", 4, "--restart")
    assert (code, said["shape"], said["parts_before"]) == (0, [4, 4, 3], 0)


def test_broken_files_are_refused_or_skipped(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--size", 8, "--part-mib", 1)
    write(many / "cat/broken.png", b"no picture")
    cut = (many / "cat/0.png").read_bytes()[:-30]
    write(many / "dog/cut.png", cut)
    out = tmp_path / "set"
    code, said = run(capsys, "import", "images", many, out, *options)
    assert code == 2
    assert "1st broken file, and none may be skipped: mend or remove it" in said["error"]
    assert not (out / "dataset.json").exists()
    code, said = run(capsys, "import", "images", many, out, *options, "--skip-broken", 1)
    assert (code, "2nd broken file, and 1 may be skipped" in said["error"]) == (2, True)
    code, said = run(capsys, "import", "images", many, out, *options, "--skip-broken", 2)
    assert (code, said["skipped"], sum(said["rows"].values())) == (0, 2, 6)
    skipped = json.loads((out / "skipped.json").read_text())["skipped"]
    assert {one["path"] for one in skipped} == {"cat/broken.png", "dog/cut.png"}
    assert all(one["reason"] and "0x" not in one["reason"] for one in skipped)
    straight = tmp_path / "straight"
    run(capsys, "import", "images", many, straight, *options, "--skip-broken", 5)
    assert content(straight) == content(out)
    part = out / "part-00000.parquet"
    part.unlink()
    assert run(capsys, "import", "images", many, out, *options, "--skip-broken", 2)[0] == 0
    assert content(straight) == content(out)
    code, said = run(capsys, "import", "images", many, tmp_path / "a.parquet", "--skip-broken", 9)
    assert (code, said["skipped"]) == (0, 2)


def test_a_class_of_broken_files_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (photos / "cat").iterdir():
        file.write_bytes(b"")
    code, said = run(capsys, "import", "images", photos, tmp_path / "set", "--skip-broken", 9)
    assert (code, "every training file of class 'cat' is broken" in said["error"]) == (2, True)
    assert not (tmp_path / "set/dataset.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("SOURCE", "OUT", "--size", 0), "--size: 1 or more"),
        (("SOURCE", "OUT", "--workers", 0), "--workers: 1 or more"),
        (("SOURCE", "OUT", "--part-mib", 0), "--part-mib: 1 or more"),
        (("SOURCE", "OUT", "--skip-broken", -1), "--skip-broken: 0 or more"),
        (("SOURCE", "OUT", "--classes", "gone.txt"), "--classes gone.txt: cannot be read"),
        (("SOURCE", "OUT", "--seconds", 5), "unrecognized arguments: --seconds"),
        (("SOURCE", "OUT", "--encoding", "gif"), "invalid choice: 'gif'"),
        (("nowhere", "OUT"), "nowhere: no such file or folder"),
        (("ftp://a/b", "OUT"), "SOURCE ftp://a/b: the scheme must be"),
        (("SOURCE", "ftp://a/b"), "DESTINATION ftp://a/b: the scheme must be"),
        (("SOURCE", "SOURCE/out"), "lies in SOURCE"),
        (("SOURCE", "FULL"), "holds 'cat/0.png', which is of no import; choose an empty folder"),
        (("SOURCE", "FULL", "--restart"), "which is of no import"),
        (("SOURCE", "OTHER.parquet", "--restart"), "a file is there that no import wrote"),
    ],
)
def test_refused_requests_write_nothing(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[Any, ...],
    told: str,
) -> None:
    image_folder(tmp_path / "FULL", 1)
    write(tmp_path / "OTHER.parquet", b"something else")
    before = content(tmp_path)
    places = {"SOURCE": photos, "OUT": tmp_path / "out", "SOURCE/out": photos / "out"}
    places |= {name: tmp_path / name for name in ("FULL", "OTHER.parquet")}
    code, said = run(capsys, "import", "images", *(places.get(word, word) for word in words))
    assert code == 2
    assert told in said["error"]
    assert content(tmp_path) == before


def test_a_broken_first_part_writes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(photos / "cat/broken.png", b"")
    before = content(tmp_path)
    code, said = run(capsys, "import", "images", photos, tmp_path / "set", *SMALL)
    assert (code, "cat/broken.png: no image that can be read" in said["error"]) == (2, True)
    assert content(tmp_path) == before


def test_show_finds_damage(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    run(capsys, "import", "images", photos, out, *SMALL)
    part = out / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert run(capsys, "show", out)[0] == 0
    code, said = run(capsys, "show", out, "--verify")
    assert (code, "part-00000.parquet: is not what was written" in said["error"]) == (3, True)
    (out / "dataset.json").unlink()
    with pytest.raises(DataError, match="its import is not finished"):
        describe(DataConfig(str(out)))
    code, said = run(capsys, "show", out)
    assert (code, "an import that is not finished" in said["error"]) == (2, True)
    for name, made in (("gone.parquet", None), ("text.parquet", b"text")):
        if made:
            write(tmp_path / name, made)
        code, said = run(capsys, "show", tmp_path / name)
        assert (code, name in said["error"]) == (2, True)


def test_tables_for_people(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.cli import main

    words = ["data", "import", "images", str(photos), str(tmp_path / "set"), "--size", "8"]
    assert main(words) == 0
    assert main(["data", "show", str(tmp_path / "set")]) == 0
    said = capsys.readouterr()
    assert "10 train, 2 test" in said.out
    assert "imported in" in said.out
    assert said.err == ""

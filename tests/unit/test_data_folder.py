"""Folders of parts and their dataset.json; addresses; what asking again mends."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from m2pt.data import files
from m2pt.data.config import DataConfig
from m2pt.data.load import describe, load
from m2pt.data.schema import DataAway, DataError

CLASSES = ["cat", "dog"]
DECLARED = {"modality": "image", "dtype": "uint8", "shape": [2, 2, 3], "classes": CLASSES}
PARTS = 3
EACH = 8


def rows(part: int) -> dict[str, Any]:
    numbers = range(part * EACH, (part + 1) * EACH)
    return {
        "id": [f"row-{number}" for number in numbers],
        "split": ["test" if number % 4 == 3 else "train" for number in numbers],
        "label": pa.array([number % 2 for number in numbers], pa.int32()),
        "label_name": [CLASSES[number % 2] for number in numbers],
        "data": [bytes([number] * 12) for number in numbers],
    }


def write(path: Path, columns: dict[str, Any], declared: object = DECLARED) -> None:
    table = pa.table(columns).replace_schema_metadata({"dataset": json.dumps(declared)})
    pq.write_table(table, path, row_group_size=3)


def about(folder: Path) -> dict[str, Any]:
    parts = sorted(folder.glob("part-*.parquet"))
    return {
        "format": 1,
        "dataset": DECLARED,
        "classes": CLASSES,
        "rows": {"train": 18, "test": 6},
        "digest": "ab" * 32,
        "parts": [
            {"name": part.name, "rows": EACH, "bytes": part.stat().st_size, "sha256": "0" * 64}
            for part in parts
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three parts of eight rows, with their dataset.json, and files that are none of them."""
    place = tmp_path / "set"
    place.mkdir()
    for part in range(PARTS):
        write(place / f"part-{part:05d}.parquet", rows(part))
    (place / "dataset.json").write_text(json.dumps(about(place)))
    (place / "README.md").write_text("not a part")
    return place


@pytest.mark.parametrize("window", [None, 6])
def test_parts_are_one_table_in_the_order_of_their_names(folder: Path, window: int | None) -> None:
    data = load(DataConfig(str(folder), window=window))
    assert (len(data.train) + len(data.validation), len(data.test)) == (18, 6)
    mean, std = (torch.tensor(values)[0] for values in vars(data.normalisation).values())
    shown = data.test.batch(range(6))[0][:, 0, 0, 0] * std + mean
    assert (shown * 255).round().int().tolist() == [3, 7, 11, 15, 19, 23]


@pytest.mark.parametrize("address", ["{}", "{}/", "file://{}", "file://{}/"])
def test_addresses_of_a_folder(folder: Path, address: str) -> None:
    assert describe(DataConfig(address.format(folder))) == describe(DataConfig(str(folder)))


def test_addresses_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = folder / "part-00000.parquet"
    wanted = describe(DataConfig(str(part)))
    assert describe(DataConfig(f"file://{part}")) == wanted
    monkeypatch.chdir(folder)
    assert describe(DataConfig(part.name)) == wanted


def test_the_digest_is_the_one_of_dataset_json(folder: Path) -> None:
    told = describe(DataConfig(str(folder))).digest
    assert told == hashlib.sha256(b"m2pt data 2 " + b"ab" * 32).hexdigest()
    (folder / "dataset.json").unlink()
    read = describe(DataConfig(str(folder))).digest
    assert read != told
    write(folder / "part-00001.parquet", rows(1) | {"data": [b"x" * 12] * EACH})
    assert describe(DataConfig(str(folder))).digest != read


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "dataset.json").write_text(json.dumps(about(folder) | values))

    return change


def part(number: int, columns: dict[str, Any], declared: object = DECLARED) -> Any:
    def change(folder: Path) -> None:
        write(folder / f"part-{number:05d}.parquet", columns, declared)
        (folder / "dataset.json").unlink()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed(format=2), r"dataset\.json: format 2, .* reads up to 1; take a newer release"),
        (changed(digest="?"), r"dataset\.json: damaged \(ValueError: digest is '\?'"),
        (changed(parts=3), r"dataset\.json: damaged \(TypeError"),
        (changed(rows={"train": 9}), r"has the rows {'train': 9, 'test': 0}, but the parts have"),
        (changed(dataset=DECLARED | {"shape": [3, 4, 1]}), r"`dataset` is not that of part-00000"),
        (changed(dataset={}), r"dataset\.json: schema metadata `dataset` has no key 'modality'"),
        (lambda f: (f / "dataset.json").write_text("{"), r"dataset\.json: damaged \(JSONDecode"),
        (lambda f: (f / "dataset.json").write_bytes(b"\xff"), r"dataset\.json: is no text"),
        (lambda f: (f / "part-00002.parquet").unlink(), r"names part-00002\.parquet, which is not"),
        (lambda f: write(f / "part-7.parquet", rows(7)), r"does not name part-7\.parquet; move"),
        (lambda f: write(f / "part-00001.parquet", rows(9) | {"data": [b"abcdefghijkl"] * EACH}),
         r"part-00001\.parquet has \d+ bytes, but there it has \d+; run `orch"),
        (part(2, rows(1)), r"part-00002\.parquet: column 'id', row 0 \(id 'row-8'\): also the id "
                           r"of row 0 of part-00001\.parquet; ids are unique"),
        (part(2, rows(2), DECLARED | {"classes": ["dog", "cat"]}),
         r"part-00002\.parquet: `dataset` .* is not that of part-00000\.parquet"),
        (part(2, rows(2) | {"data": [b"y"] * EACH}), r"part-00002\.parquet: column 'data', row 0 "),
        (part(1, {name: values[:0] for name, values in rows(1).items()}), r"part-00001\.parquet: "),
        (part(1, rows(1) | {"group": ["g"] * EACH}), r"part-00000\.parquet: no column 'group'"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(folder: Path, change: Callable[[Path], Any], told: str) -> None:
    change(folder)
    with pytest.raises(DataError, match=told):
        load(DataConfig(str(folder)))


def test_a_folder_without_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without parts part-\*\.parquet; name"):
        describe(DataConfig(f"{tmp_path}/"))
    with pytest.raises(DataError, match=r"none/: does not exist on this machine; name a Parquet"):
        describe(DataConfig(f"{tmp_path}/none/"))


def test_asking_again_mends_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("m2pt.data.files.time.sleep", pauses.append)
    faults = [OSError("AWS Error NETWORK_CONNECTION during GetObject"), OSError(5, "I/O")]

    def answer() -> str:
        if faults:
            raise faults.pop(0)
        return "here"

    assert files.asked("s3://b/x", answer) == "here"
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        ("AWS Error NETWORK_CONNECTION: curlCode: 7", DataAway, "cannot be reached .*ENDPOINT_URL"),
        ("AWS Error SLOW_DOWN during GetObject", DataAway, "s3://b/x: cannot be reached"),
        ("AWS Error ACCESS_DENIED during HeadObject", DataError, "denied; check AWS_ACCESS_KEY_ID"),
        ("AWS Error NO_SUCH_BUCKET during ListObjectsV2", DataError, "there is no such bucket"),
        ("AWS Error NETWORK_CONNECTION: SSL connect error", DataError, "write http:// in AWS_END"),
        ("AWS Error UNKNOWN (HTTP status 400)", DataError, "refuses the request"),
        ("Couldn't deserialize thrift", OSError, "thrift"),
    ],
)
def test_what_asking_again_does_not_mend(
    monkeypatch: pytest.MonkeyPatch, error: str, kind: type[Exception], told: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("m2pt.data.files.time.sleep", pauses.append)

    def fail() -> None:
        raise OSError(f"{error} (Request ID: tx1)")

    with pytest.raises(kind, match=told) as raised:
        files.asked("s3://b/x", fail)
    assert len(pauses) == (4 if kind is DataAway else 0)
    assert kind is OSError or "Request ID" not in str(raised.value)

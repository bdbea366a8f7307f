"""Parquet data sets: what is read, and what is refused with file, column, row and remedy."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from m2pt.data import embedded
from m2pt.data.config import DataConfig
from m2pt.data.load import describe, load
from m2pt.data.schema import DataError, FrontEnd, Schema

REAL = Path(__file__).parents[3] / "shared" / "data"
CLASSES = ["cat", "dog"]
DECLARED = {"modality": "image", "dtype": "uint8", "shape": [4, 4, 3], "classes": CLASSES}

Columns = dict[str, Any]


def columns(count: int = 12, *, split: str | None = None, first: int = 0) -> Columns:
    """Rows of 4 x 4 colour images; every fourth is a test row unless `split` says otherwise."""
    rng = np.random.default_rng(0)
    labels = [row % 2 for row in range(count)]
    return {
        "id": [f"row-{first + row}" for row in range(count)],
        "split": [split or ("test" if row % 4 == 3 else "train") for row in range(count)],
        "label": pa.array(labels, pa.int32()),
        "label_name": [CLASSES[label] for label in labels],
        "data": [rng.integers(0, 256, 48, dtype=np.uint8).tobytes() for _ in range(count)],
    }


def write(path: Path, rows: Columns, declared: object = DECLARED) -> str:
    metadata = {} if declared is None else {"dataset": json.dumps(declared)}
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), path, row_group_size=5)
    return str(path)


def changed(column: str, row: int, value: object) -> Callable[[Columns], None]:
    def change(rows: Columns) -> None:
        values = list(rows[column])
        values[row] = value
        rows[column] = pa.array(values, pa.int32()) if column == "label" else values

    return change


def without(column: str) -> Callable[[Columns], None]:
    return lambda rows: rows.pop(column)


def retyped(column: str, values: list[object]) -> Callable[[Columns], None]:
    return lambda rows: rows.update({column: values})


def test_reads_what_was_written(tmp_path: Path) -> None:
    rows = columns()
    data = load(DataConfig(write(tmp_path / "a.parquet", rows), validation=0.25))
    assert data.info.shape == (3, 4, 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 3, 3)
    assert data.test.labels.tolist() == [1, 1, 1]
    got, labels = data.test.batch([2, 0])
    assert labels.tolist() == [1, 1]
    assert got.dtype == torch.float32
    pixels = np.frombuffer(rows["data"][11], np.uint8).reshape(4, 4, 3)
    mean, std = (np.array(values) for values in vars(data.normalisation).values())
    wanted = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(got[0].numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_normalisation_is_of_the_training_rows_alone(tmp_path: Path) -> None:
    data = load(DataConfig(write(tmp_path / "a.parquet", columns(40))))
    batch, _ = data.train.batch(range(len(data.train)))
    torch.testing.assert_close(batch.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    deviation = batch.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-4, rtol=0)


def test_fixed_size_and_variable_bytes_read_alike(tmp_path: Path) -> None:
    rows = columns(30)
    plain = write(tmp_path / "plain.parquet", rows)
    wanted, _ = load(DataConfig(plain)).train.batch([0, 5])
    for number, kind in enumerate((pa.binary(48), pa.large_binary())):
        typed = rows | {"data": pa.array(rows["data"], kind)}
        path = write(tmp_path / f"{number}.parquet", typed)
        assert torch.equal(load(DataConfig(path)).train.batch([0, 5])[0], wanted)


def test_test_rows_may_come_from_a_second_file(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", columns(12, split="train"))
    test = write(tmp_path / "test.parquet", columns(4, split="test", first=100))
    data = load(DataConfig(train, test_source=test))
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 4)
    with pytest.raises(DataError, match="no row has split 'test', and there is no `test_source`"):
        load(DataConfig(train))
    with pytest.raises(DataError, match="no row has split 'train'"):
        describe(DataConfig(test))
    both = write(tmp_path / "both.parquet", columns(12))
    with pytest.raises(DataError, match="has test rows of its own; leave out `test_source`"):
        describe(DataConfig(both, test_source=test))
    leaking = write(tmp_path / "leak.parquet", columns(4, split="test"))
    with pytest.raises(DataError, match=r"row 0: 'row-0' is also a training row"):
        describe(DataConfig(train, test_source=leaking))
    other = write(
        tmp_path / "other.parquet",
        columns(4, split="test", first=100),
        DECLARED | {"shape": [4, 12, 1]},
    )
    with pytest.raises(DataError, match=r"other.parquet: .*'shape': as in .*train.parquet"):
        describe(DataConfig(train, test_source=other))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("label_name"), r"no column 'label_name'; add it"),
        (retyped("label", ["a"] * 12), r"column 'label' is string; write it as an integer"),
        (retyped("data", [1.5] * 12), r"column 'data' is double; write it as binary"),
        (changed("id", 3, "row-1"), r"column 'id', row 3 .*also the id of row 1"),
        (changed("id", 3, None), r"column 'id', row 3: empty"),
        (changed("split", 7, "valid"), r"column 'split', row 7 \(id 'row-7'\): .*'valid'"),
        (changed("label", 5, 2), r"column 'label', row 5 .*0 to 1, .* but it is 2"),
        (changed("label", 5, -1), r"column 'label', row 5 .* but it is -1"),
        (
            changed("label_name", 9, "cow"),
            r"column 'label_name', row 9 .*'dog' .*here it is 'cow'",
        ),
        (changed("data", 8, b"short"), r"column 'data', row 8 .*48 bytes .* but it is 5 bytes"),
        (changed("data", 8, None), r"column 'data', row 8 .* but it is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: Callable[[Columns], None], told: str) -> None:
    rows = columns()
    change(rows)
    path = write(tmp_path / "bad.parquet", rows)
    with pytest.raises(DataError, match=r"bad\.parquet: " + told):
        load(DataConfig(path))


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        (None, "has no key `dataset`; add a JSON object"),
        ([1], "no JSON object"),
        ({"dtype": "uint8"}, "has no key 'modality'; write an object such as"),
        (DECLARED | {"modality": "smell"}, "'modality': one of image, .* 'smell'"),
        (DECLARED | {"dtype": "int64"}, "'dtype': one of uint8, .* 'int64'"),
        (DECLARED | {"shape": [4, 13]}, r"row 0 .*: 52 bytes for uint8 of shape .* 48 bytes"),
        (DECLARED | {"shape": [4]}, r"'shape': 3 whole numbers .*\[4\]"),
        (DECLARED | {"shape": [4, 4, 0]}, r"'shape': .*\[4, 4, 0\]"),
        (DECLARED | {"layout": "CHW RGB"}, "'layout': HWC or HW: channels last, .*'CHW RGB'"),
        (DECLARED | {"classes": ["cat", "cat"]}, "'classes': .* distinct"),
        (
            {"modality": "audio", "dtype": "int16", "shape": [24], "classes": CLASSES},
            "'sample_rate': .* None",
        ),
        (
            {"modality": "point", "dtype": "float16", "shape": [12, 2], "classes": CLASSES},
            r"'shape': \[points, 3\]",
        ),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, declared: object, told: str) -> None:
    path = write(tmp_path / "bad.parquet", columns(), declared)
    with pytest.raises(DataError, match=told):
        load(DataConfig(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.parquet: does not exist"):
        describe(DataConfig(str(tmp_path / "gone.parquet")))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        describe(DataConfig(str(tmp_path / "folder.parquet")))
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        describe(DataConfig(str(tmp_path / "text.parquet")))
    whole = write(tmp_path / "whole.parquet", columns())
    (tmp_path / "cut.parquet").write_bytes(Path(whole).read_bytes()[:-50])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        describe(DataConfig(str(tmp_path / "cut.parquet")))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    values = np.zeros((12, 16), np.float32)
    values[6, 3] = np.nan
    rows = columns() | {"data": [row.tobytes() for row in values]}
    declared = {"modality": "image", "dtype": "float32", "shape": [4, 4], "classes": CLASSES}
    with pytest.raises(DataError, match=r"column 'data', row 6 \(id 'row-6'\): holds NaN"):
        load(DataConfig(write(tmp_path / "nan.parquet", rows, declared)))


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", columns())
    first = describe(DataConfig(path)).digest
    assert describe(DataConfig(path, validation_seed=3)).digest == first
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(Path(path).read_bytes())
    assert describe(DataConfig(str(copy))).digest == first
    write(tmp_path / "a.parquet", columns(16))
    os.utime(path, ns=(1, 1))  # so that the change shows however coarse the clock of the files is
    assert describe(DataConfig(path)).digest != first
    assert len(load(DataConfig(path)).test) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "tones", "shapes", "clips"])
def test_a_generated_set_reads_the_same_from_parquet(tmp_path: Path, name: str) -> None:
    made = embedded.generate(name)
    schema = made.schema
    declared = {
        "modality": "pointcloud" if schema.modality == "point" else schema.modality,
        "dtype": schema.dtype,
        "shape": list(schema.shape),
        "classes": list(schema.classes),
        "sample_rate": schema.sample_rate,
    }
    rows = {
        "id": [str(row) for row in range(len(made.labels.stored))],
        "split": ["test" if held else "train" for held in made.test],
        "label": pa.array(made.labels.stored, pa.int32()),
        "label_name": [schema.classes[label] for label in made.labels.stored],
        "data": [sample.tobytes() for sample in made.samples],
    }
    stored = load(DataConfig(write(tmp_path / "a.parquet", rows, declared)))
    direct = load(DataConfig(name))
    assert stored.info.shape == direct.info.shape
    assert stored.info.class_names == direct.info.class_names
    for split in ("train", "validation", "test"):
        theirs, ours = getattr(stored, split), getattr(direct, split)
        assert torch.equal(theirs.batch(range(8))[0], ours.batch(range(8))[0])
        assert torch.equal(theirs.labels, ours.labels)


@pytest.mark.parametrize(
    ("schema", "shape"),
    [
        (Schema("image", "uint8", (8, 6), ("a", "b")), (1, 8, 6)),
        (Schema("video", "uint8", (16, 8, 6, 3), ("a", "b")), (3, 16, 8, 6)),
        (Schema("point", "float16", (64, 3), ("a", "b")), (64, 3)),
        (Schema("audio", "int16", (40000,), ("a", "b"), 8000), (1, 512, 64)),
        (Schema("audio", "int16", (160000,), ("a", "b"), 16000), (1, 1008, 96)),
    ],
)
def test_prepared_shapes(schema: Schema, shape: tuple[int, ...]) -> None:
    assert schema.prepared_shape == shape


def test_front_end_of_eight_kilohertz() -> None:
    front = FrontEnd(8000, 40000)
    assert (front.hop, front.window, front.frames, front.bands) == (80, 200, 512, 64)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not at {REAL}")
@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("signdigits", (3, 64, 64), (1651, 411)),
        ("esc10", (1, 512, 64), (320, 80)),
        ("ldraw", (1024, 3), (1721, 495)),
    ],
)
def test_real_data(name: str, shape: tuple[int, ...], counts: tuple[int, int]) -> None:
    config = DataConfig(f"{REAL}/{name}_train.parquet", test_source=f"{REAL}/{name}_test.parquet")
    data = load(config)
    assert data.info.shape == shape
    assert (len(data.train) + len(data.validation), len(data.test)) == counts
    batch, _ = data.test.batch(range(16))
    assert batch.isfinite().all()
    assert re.fullmatch("[0-9a-f]{64}", data.info.digest)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not at {REAL}")
def test_real_video() -> None:
    config = DataConfig(f"{REAL}/sprites_train.parquet", test_source=f"{REAL}/sprites_test.parquet")
    data = load(config)
    assert data.info.shape == (3, 16, 64, 64)
    assert (len(data.train) + len(data.validation), len(data.test)) == (1260, 315)
    assert abs(data.train.batch(range(64))[0].mean()) < 0.2

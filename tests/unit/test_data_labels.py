"""Tables that tell more of a row than one class: what is read, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from m2pt.data.config import DataConfig
from m2pt.data.labels import Labels, joined, packed
from m2pt.data.load import describe, load
from m2pt.data.schema import DataError
from orchestrator.conduct.preflight import check_inputs
from orchestrator.config.io import from_dict
from orchestrator.errors import RequestError
from orchestrator.importing.show import look

Columns = dict[str, Any]
SETS = {
    "modality": "audio",
    "dtype": "int16",
    "shape": [400],
    "sample_rate": 1000,
    "task": "labels",
    "classes": ["rain", "wind", "dog"],
}
ROWS = [[0], [0, 2], [], [1], [1, 0], [2], [2, 1], [0], [1], [], [0, 1, 2], [2]]


def sets(rows: list[Any] = ROWS) -> Columns:
    """Twelve sounds, every fourth a test row."""
    rng = np.random.default_rng(0)
    return {
        "id": [f"row-{row}" for row in range(12)],
        "split": ["test" if row % 4 == 3 else "train" for row in range(12)],
        "labels": pa.array(rows, pa.list_(pa.int16())),
        "data": [rng.integers(-99, 99, 400, dtype=np.int16).tobytes() for _ in range(12)],
    }


def write(path: Path, rows: Columns, declared: dict[str, Any]) -> str:
    table = pa.table(rows).replace_schema_metadata({"dataset": json.dumps(declared)})
    pq.write_table(table, path, row_group_size=5)
    return str(path)


def told(path: str, streamed: bool) -> dict[bytes, list[int]]:
    """Samples of all splits, as bytes, and their labels."""
    data = load(DataConfig(path, window=4 if streamed else None))
    found = {}
    for split in (data.train, data.validation, data.test):
        samples, labels = split.batch(range(len(split)))
        assert torch.equal(labels, split.labels)
        found |= {s.numpy().tobytes(): row.tolist() for s, row in zip(samples, labels, strict=True)}
    return found


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int16()), pa.large_list(pa.int64()), pa.list_(pa.uint8())]
)
def test_sets_are_read_beside_their_samples(tmp_path: Path, kind: pa.DataType) -> None:
    rows = sets() | {"labels": pa.array(ROWS, kind)}
    path = write(tmp_path / "sets.parquet", rows, SETS)
    info = describe(DataConfig(path))
    assert (info.task, info.classes, info.outputs) == ("labels", 3, 3)
    found = told(path, streamed=False)
    assert sorted(found.values()) == sorted([int(c in row) for c in range(3)] for row in ROWS)
    assert told(path, streamed=True).values() != []
    assert sorted(told(path, streamed=True).values()) == sorted(found.values())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([0, 3], r"'labels', row 5 \(id 'row-5'\): classes from 0 to 2, .* but it is \[0, 3\]"),
        ([-1], r"'labels', row 5 .*: classes from 0 to 2, .* but it is \[-1\]"),
        ([1, 1], r"'labels', row 5 .*: each class once, but it is \[1, 1\]"),
        ([1, None], r"'labels', row 5 .*: a list of numbers without gaps, but it is \[1, None\]"),
        (None, r"'labels', row 5: empty; fill it"),
        ([0] * 99, r"'labels': row group 1 has 104 values in 5 rows, but a row has at most 3"),
    ],
)
def test_bad_sets_are_named(tmp_path: Path, row: Any, told: str) -> None:
    rows = sets([*ROWS[:5], row, *ROWS[6:]])
    with pytest.raises(DataError, match=rf"bad\.parquet: column {told}"):
        describe(DataConfig(write(tmp_path / "bad.parquet", rows, SETS)))


def test_sets_that_nothing_can_be_measured_on(tmp_path: Path) -> None:
    few = sets([[0] if row in (0, 3) else [] for row in range(12)])
    with pytest.raises(DataError, match="no class has two training rows"):
        describe(DataConfig(write(tmp_path / "few.parquet", few, SETS)))
    untested = sets([[] if row % 4 == 3 else [0] for row in range(12)])
    with pytest.raises(DataError, match="every test row's set is empty"):
        describe(DataConfig(write(tmp_path / "none.parquet", untested, SETS)))


def test_columns_and_task_belong_together(tmp_path: Path) -> None:
    plain = {key: value for key, value in SETS.items() if key != "task"}
    with pytest.raises(DataError, match="no column 'label'; add it, an integer"):
        describe(DataConfig(write(tmp_path / "a.parquet", sets(), plain)))
    text = sets() | {"labels": [["rain"]] * 12}
    with pytest.raises(DataError, match=r"'labels' is list<.*; write it as a list of integers"):
        describe(DataConfig(write(tmp_path / "b.parquet", text, SETS)))
    with pytest.raises(DataError, match=r"key 'task': one of classes, labels.* is 'caption'"):
        describe(DataConfig(write(tmp_path / "c.parquet", sets(), SETS | {"task": "caption"})))
    path = write(tmp_path / "d.parquet", sets(), SETS)
    with pytest.raises(RequestError, match=r"'task' is 'labels', and `data show` reads rows of"):
        look(path, verify=False)


def test_a_metric_that_the_task_has_not_is_refused_before_start(tmp_path: Path) -> None:
    path = write(tmp_path / "sets.parquet", sets(), SETS)
    values = {"name": "try", "data": {"source": path}, "model": {"tokenizer": {"patch": 16}}}
    with pytest.raises(
        RequestError,
        match=r"search\.metric: must be val/map, val/loss or train/loss for '.*', which has a set "
        r"of classes for each sample, is 'val/accuracy'; write metric: val/map",
    ):
        check_inputs(from_dict(values))
    check_inputs(from_dict(values | {"search": {"metric": "val/map"}}))
    check_inputs(from_dict(values | {"search": {"metric": "train/loss", "mode": "min"}}))
    with pytest.raises(RequestError, match=r"must be val/accuracy, .* which has one class for"):
        from_dict(values | {"data": {"source": "tones"}, "search": {"metric": "val/map"}})
    with pytest.raises(RequestError, match=r"must be val/map, .* for 'scenes'"):
        from_dict(values | {"data": {"source": "scenes"}})


def test_every_class_is_on_both_sides_by_its_rarest() -> None:
    sets_NC = np.zeros((9, 3), dtype=np.bool_)
    sets_NC[:7, 0] = True
    sets_NC[[1, 2], 1] = True
    sets_NC[[2, 7], 2] = True
    labels = Labels("labels", 3, packed(sets_NC))
    assert labels.strata.tolist() == [0, 1, 1, 0, 0, 0, 0, 2, 3]
    assert labels.counts().tolist() == [7, 2, 2]
    again = joined([labels.chosen(np.arange(4)), labels.chosen(np.arange(4, 9))])
    assert np.array_equal(again.at(np.arange(9)), sets_NC)

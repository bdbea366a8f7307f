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
    found: dict[bytes, list[int]] = {}
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
    with pytest.raises(
        DataError, match=r"key 'task': one of classes, labels, parts.* is 'caption'"
    ):
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


PARTS = {
    "modality": "point",
    "dtype": "float32",
    "shape": [4, 3],
    "task": "parts",
    "classes": ["mug", "table"],
    "parts": {"table": ["top", "legs", "drawer"], "mug": ["body", "handle"]},
}


def clouds(changed: dict[int, Any] | None = None) -> Columns:
    """Twelve clouds of four points, every fourth a test row."""
    rng = np.random.default_rng(0)
    parts = {row: [0, 0, 1, 1] if row % 2 == 0 else [4, 3, 2, 2] for row in range(12)}
    return {
        "id": [f"row-{row}" for row in range(12)],
        "split": ["test" if row // 2 % 3 == 2 else "train" for row in range(12)],
        "label": pa.array([row % 2 for row in range(12)], pa.int32()),
        "label_name": [["mug", "table"][row % 2] for row in range(12)],
        "parts": pa.array(list((parts | (changed or {})).values()), pa.list_(pa.uint8())),
        "data": [rng.normal(size=(4, 3)).astype(np.float32).tobytes() for _ in range(12)],
    }


@pytest.mark.parametrize("streamed", [False, True])
def test_parts_are_read_beside_their_points(tmp_path: Path, streamed: bool) -> None:
    path = write(tmp_path / "parts.parquet", clouds(), PARTS)
    info = describe(DataConfig(path))
    assert (info.task, info.classes, info.outputs) == ("parts", 2, 5)
    assert info.parts == (("body", "handle"), ("top", "legs", "drawer"))
    found = told(path, streamed)
    assert sorted(found.values()) == [[0, 0, 0, 1, 1]] * 6 + [[1, 4, 3, 2, 2]] * 6


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([2, 3, 4], r"row 3 \(id 'row-3'\): a part for each of the 4 points, but there are 3: \["),
        ([2, 3, 4, 5], r"row 3 .*: parts of 'table' are 2 to 4 in `dataset`, but a point has 5: "),
        ([2, 3, 1, 4], r"row 3 .*: parts of 'table' are 2 to 4 in `dataset`, but a point has 1: "),
        ([2, 3, None, 4], r"row 3 .*: a list of numbers without gaps, but it is \[2, 3, None, 4\]"),
        ([], r"row 3 .*: a part for each of the 4 points, but there are 0: \[\]"),
        (None, "row 3: empty; fill it or drop the row"),
        ([2] * 99, r"row group 0 has 115 values in 5 rows, but a row has at most 4"),
    ],
)
def test_bad_parts_are_named(tmp_path: Path, row: Any, told: str) -> None:
    path = write(tmp_path / "bad.parquet", clouds({3: row}), PARTS)
    with pytest.raises(DataError, match=rf"bad\.parquet: column 'parts'[,:] {told}"):
        describe(DataConfig(path))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"parts": None}, r"'parts': .*an object that names the parts of each class, .* is None"),
        ({"parts": {"mug": ["body", "handle"]}}, "'parts': .*names the parts of each class"),
        (
            {"parts": {"mug": ["body", "body"], "table": ["top"]}},
            "'parts': .*one or more distinct names each",
        ),
        ({"modality": "audio", "sample_rate": 8000, "shape": [48], "dtype": "int16"},
         "'task': classes or labels for audio: only points have, but it is 'parts'"),
    ],
)  # fmt: skip
def test_bad_names_of_parts(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        describe(DataConfig(write(tmp_path / "bad.parquet", clouds(), PARTS | changed)))


def test_moved_points_keep_their_parts() -> None:
    """Turned, stretched and jittered, but none is dropped: each stays where its label belongs."""
    data = load(DataConfig("shape-parts", augment="standard", turn=True))
    shapes = load(DataConfig("shapes", augment="standard"))
    plain, labels = data.train.batch(range(8))
    moved, same = data.train.batch(range(8), epoch=2, seed=3)
    assert torch.equal(labels, same)
    flat, _ = shapes.train.batch(range(8), epoch=2, seed=3)
    assert (flat[:, 1:] == flat[:, :1]).all(dim=2).any()
    assert not (moved[:, 1:] == moved[:, :1]).all(dim=2).any()
    ones = torch.ones(8, plain.shape[1], 1)
    before = torch.cat([plain, ones], dim=2).double()
    affine = torch.linalg.lstsq(before, moved.double()).solution
    assert float((before @ affine - moved).abs().max()) < 0.03  # what jitter alone moves


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"training": {"mixup": 0.8}}, r"^training\.mixup: points have no order"),
        ({"data": {"source": "shapes"}, "training": {"cutmix": 1.0}}, r"^training\.cutmix: cuts"),
        (
            {"search": {"space": {"training.mixup": {"uniform": [0.0, 0.8]}}}},
            r"^search\.space\.training\.mixup: value 0\.8 .*: training\.mixup: points have no",
        ),
    ],
)
def test_mixing_that_means_nothing_is_refused_before_start(
    changed: dict[str, Any], told: str
) -> None:
    values = {"name": "try", "data": {"source": "shapes"}} | changed
    with pytest.raises(RequestError, match=told):
        check_inputs(from_dict(values))


def test_metrics_of_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "parts.parquet", clouds(), PARTS)
    model = {"tokenizer": {"groups": 2, "group_size": 2}}
    values = {"name": "try", "data": {"source": path}, "model": model}
    told = r"search\.metric: must be val/miou, val/class_miou, val/loss .* a part for each point,"
    with pytest.raises(RequestError, match=told):
        check_inputs(from_dict(values))
    check_inputs(from_dict(values | {"search": {"metric": "val/class_miou"}}))
    with pytest.raises(RequestError, match=told):
        from_dict(values | {"data": {"source": "shape-parts"}})

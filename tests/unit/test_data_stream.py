"""Streamed tables: the order, the content, what is in memory, and what goes wrong on the way."""

import io
import json
import threading
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2pt.data import embedded, stream
from m2pt.data.config import Augment, DataConfig
from m2pt.data.decode import Fetched, fetch
from m2pt.data.load import load
from m2pt.data.order import windowed
from m2pt.data.schema import DataError
from m2pt.training.batches import global_batches, micro_batches, order_seed

COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=12)
CLASSES = ["cat", "dog"]


def table_of(name: str, rows_per_group: int, folder: Path) -> str:
    """An embedded set as a Parquet file of many row groups."""
    made = embedded.generate(name)
    schema = made.schema
    declared = {
        "modality": schema.modality,
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
    return written(folder / f"{name}.parquet", rows, declared, rows_per_group)


def written(path: Path, rows: dict[str, Any], declared: object, rows_per_group: int = 5) -> str:
    table = pa.table(rows).replace_schema_metadata({"dataset": json.dumps(declared)})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return str(path)


def pictures(kind: str, count: int = 12) -> tuple[dict[str, Any], dict[str, object], list[Any]]:
    """Rows of encoded pictures of 6 x 4 pixels, what to declare, and the pixels."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (6, 4, 3), dtype=np.uint8) for _ in range(count)]
    encoded = []
    for picture in pixels:
        made = io.BytesIO()
        Image.fromarray(picture).save(made, kind)
        encoded.append(made.getvalue())
    rows = {
        "id": [f"row-{row}" for row in range(count)],
        "split": ["test" if row % 4 == 3 else "train" for row in range(count)],
        "label": pa.array([row % 2 for row in range(count)], pa.int32()),
        "label_name": [CLASSES[row % 2] for row in range(count)],
        "data": encoded,
    }
    declared: dict[str, object] = {"modality": "image", "dtype": "uint8", "encoding": kind}
    return rows, declared | {"shape": [6, 4, 3], "classes": CLASSES}, pixels


@given(counts=COUNTS, window=st.integers(1, 30), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_sees_each_sample_once_and_needs_no_more_than_a_window(
    counts: list[int], window: int, seed: int
) -> None:
    sizes = np.array(counts, dtype=np.int64)
    order = windowed(sizes, window, seed)
    assert torch.equal(order, windowed(sizes, window, seed))
    assert sorted(order.tolist()) == list(range(sum(counts)))
    group_of = np.repeat(np.arange(len(counts)), sizes)[order.numpy()]
    needed = np.zeros(len(order), dtype=np.int64)
    for group in np.unique(group_of):
        places = np.flatnonzero(group_of == group)
        needed[places[0] : places[-1] + 1] += counts[group]
    assert needed.max(initial=0) < window + max(counts) + (window == 1)


def test_row_groups_are_mixed_and_epochs_differ() -> None:
    counts = np.full(40, 25)
    orders = [windowed(counts, 250, order_seed(0, epoch)) for epoch in range(2)]
    assert not torch.equal(*orders)
    for order in orders:
        groups = order.numpy() // 25
        batches = [len(np.unique(groups[first : first + 32])) for first in range(0, 1000, 32)]
        assert np.mean(batches) > 7  # of the ten in a window
        assert len(np.unique(groups[:250])) == 10
        assert np.ptp(np.unique(groups[:250])) > 15  # drawn from all over the table


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tones", "shapes", "clips"])
@pytest.mark.parametrize("augment", ["light", "standard"])
def test_streamed_samples_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, augment: Augment
) -> None:
    monkeypatch.setattr("m2pt.data.load._SAMPLE_GROUPS", 10**6)  # the same statistics, too
    monkeypatch.setattr("m2pt.data.load._SAMPLE_ROWS", 10**9)
    path = table_of(name, 16, tmp_path)
    kept = load(DataConfig(path, augment=augment))
    streamed = load(DataConfig(path, augment=augment, window=64))
    assert (streamed.info, streamed.normalisation) == (kept.info, kept.normalisation)
    pieces = [torch.tensor([5, 50, 17]), torch.tensor([5]), torch.arange(30, 55)]
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(streamed, split), getattr(kept, split)
        assert torch.equal(ours.labels, theirs.labels)
        again = {"epoch": 2, "seed": 7, "views": 2}
        for workers, view in ((0, {}), (3, {"epoch": 2, "seed": 7}), (2, again)):
            found = ours.stream(pieces, workers=workers, **view)
            for batch, wanted in zip(found, theirs.stream(pieces, **view), strict=True):
                assert all(map(torch.equal, batch, wanted))
    assert torch.equal(streamed.train.batch([9, 2])[0], kept.train.batch([9, 2])[0])


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_workers_share_one_order(tmp_path: Path, size: int, accumulate: int) -> None:
    train = load(DataConfig(table_of("shapes", 16, tmp_path), window=64)).train
    batches = global_batches(train.order(order_seed(3, 1)), 50)
    steps: list[list[int]] = [[] for _ in batches]
    for rank in range(size):
        shares = [
            micro_batches(batch, rank=rank, size=size, accumulate=accumulate) for batch in batches
        ]
        pieces = [piece for share in shares for piece, _ in share]
        with closing(train.stream(pieces, workers=2)) as read:
            for step, share in enumerate(shares):
                for piece, weight in share:
                    samples, labels = next(read)
                    assert torch.equal(labels, train.labels[piece])
                    assert len(samples) == len(piece)
                    steps[step] += piece.tolist() if weight else []
    assert [sorted(step) for step in steps] == [sorted(batch.tolist()) for batch in batches]


class Alive:
    """Samples of row groups in memory, counted by what is not yet garbage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.fetched, self._known = 0, 0, weakref.WeakSet[Fetched]()
        self._lock = threading.Lock()
        monkeypatch.setattr(stream, "fetch", self._fetch)

    def _fetch(self, *arguments: Any) -> Fetched:
        found = fetch(*arguments)
        with self._lock:
            self._known.add(found)
            self.fetched += 1
            self.most = max(self.most, sum(len(held.rows) for held in self._known))
        return found


@pytest.mark.parametrize("window", [1, 16, 32])
def test_memory_is_bounded_by_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Held are two windows, a row group more, and what the next five batches need of others."""
    train = load(DataConfig(table_of("shapes", 8, tmp_path), window=window)).train
    alive = Alive(monkeypatch)
    pieces = global_batches(train.order(0), 8)
    seen = sum(len(samples) for samples, _ in train.stream(pieces, workers=2))
    assert seen == len(train)
    assert alive.fetched == 48  # each row group once
    assert alive.most <= 2 * window + 8 + (5 + 1) * 8


@pytest.mark.slow
def test_leaving_early_ends_the_threads(tmp_path: Path) -> None:
    train = load(DataConfig(table_of("clips", 16, tmp_path), window=64)).train
    before = threading.active_count()
    with closing(train.stream(global_batches(train.order(0), 8), workers=2)) as read:
        next(read)
        assert before < threading.active_count() <= before + 4
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("window", [None, 4])
def test_encoded_pictures(tmp_path: Path, kind: str, window: int | None) -> None:
    rows, declared, pixels = pictures(kind)
    path = written(tmp_path / "a.parquet", rows, declared)
    data = load(DataConfig(path, validation=0.25, window=window))
    mean, std = (np.array(values) for values in vars(data.normalisation).values())
    shown = data.test.batch([1])[0][0].permute(1, 2, 0).numpy() * std + mean
    encoded = np.asarray(Image.open(io.BytesIO(rows["data"][7])))
    np.testing.assert_allclose(shown * 255, encoded, atol=1e-3)
    assert kind == "jpeg" or np.array_equal(encoded, pixels[7])


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-30], r"no sound JPEG \(.*\); mend it, or drop the row"),
        (lambda data: b"GIF89a" + data, r"no sound JPEG"),
        (lambda data: b"", "is empty; fill it"),
        (lambda data: _sized(8, 4), r"6 x 4 pixels, but it has 4 x 8; resize"),
    ],
)
def test_corrupt_pictures_are_named(
    tmp_path: Path, window: int | None, change: Any, told: str
) -> None:
    rows, declared, _ = pictures("jpeg")
    rows["data"][6] = change(rows["data"][6])
    config = DataConfig(written(tmp_path / "bad.parquet", rows, declared), window=window)
    with pytest.raises(DataError, match=rf"bad\.parquet: .*row 6 \(id 'row-6'\): {told}"):
        _read_all(config)


def _read_all(config: DataConfig) -> None:
    data = load(config)
    for samples in (data.train, data.validation):
        samples.batch(range(len(samples)))


def _sized(width: int, height: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (width, height)).save(made, "jpeg")
    return made.getvalue()


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"encoding": "gif"}, "'encoding': one of raw, jpeg, png, but it is 'gif'"),
        ({"encoding": "png", "shape": [6, 4]}, "'encoding': raw, but for images of uint8"),
        ({"encoding": "png", "dtype": "float32"}, "'encoding': raw, but for images of uint8"),
    ],
)
def test_encodings_that_cannot_be(tmp_path: Path, declared: Any, told: str) -> None:
    rows, about, _ = pictures("png")
    with pytest.raises(DataError, match=told):
        load(DataConfig(written(tmp_path / "a.parquet", rows, about | declared)))


def test_row_groups_that_are_too_large_to_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2pt.data.load._LARGEST_GROUP_BYTES", 20_000)
    path = table_of("shapes", 384, tmp_path)
    assert len(load(DataConfig(path)).train)
    with pytest.raises(DataError, match=r"row group 0 has \d+ bytes, .* 20000, .*row_group_size"):
        load(DataConfig(path, window=64))


def test_large_tables_are_streamed_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2pt.data.load.STREAMED_BYTES", 100_000)
    monkeypatch.setattr("m2pt.data.load._WINDOW_BYTES", 64 * 128 * 3 * 4)
    data = load(DataConfig(table_of("shapes", 16, tmp_path)))
    order = data.train.order(5)
    assert not torch.equal(order, load(DataConfig("shapes")).train.order(5))
    asked = load(DataConfig(str(tmp_path / "shapes.parquet"), window=64)).train
    assert torch.equal(order, asked.order(5))

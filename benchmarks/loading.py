"""What reading data gives over what training takes, and over torchvision's loader, in one run.

    python benchmarks/loading.py [--rounds 5] [--seconds 2] [--skip-pictures] [--skip-memory]

Run it from the repository's root; it reads ../shared/data, as the search files do.

For each modality: samples per second that the training view gives (prepared, augmented as the
search file says), kept in memory and streamed by two threads, over the samples per second that the
search file's model takes in training on this machine, one thread computing. For images: one pass
over JPEG files of the training rows, decoded and normalised, streamed from a Parquet file of the
same bytes, over torchvision's ImageFolder and a DataLoader with two workers. Measures take turns;
a ratio is the median over the rounds. Last: how much memory reading takes when the table grows and
the window does not.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # it ships no types
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from m2pt.data.config import DataConfig, DataInfo
from m2pt.data.load import load
from m2pt.data.samples import Batch, Dataset
from m2pt.training.batches import global_batches
from m2pt.training.loop import Training
from m2pt.training.recipe import TrainingConfig
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import load_experiment

SEARCH_FILES = {"image": "signdigits", "audio": "esc10", "point": "ldraw", "video": "sprites"}
WINDOW = 256
MEMORY_WINDOW = 512
PICTURE_BYTES = 64 * 64 * 3
ROWS_IN_GROUP = 128
WORKERS = 2
BATCH = 32
TARGET = 1.5


@dataclass(frozen=True)
class Loading:
    """Samples per second of one modality, medians; the ratios are medians of their own."""

    modality: str
    training: float
    in_memory: float
    streamed: float
    in_memory_ratio: float
    streamed_ratio: float


@dataclass(frozen=True)
class Pictures:
    """Pictures per second of one pass over JPEG files, medians, and the median ratio."""

    ours: float
    torchvision: float
    ratio: float


@dataclass(frozen=True)
class Memory:
    """By how many MiB a process grows that reads a table once, in its own process each."""

    table_mib: float
    window_mib: float
    streamed_mib: float
    in_memory_mib: float


class Fixed:
    """Samples that cost nothing to read: the same batch again and again."""

    def __init__(self, batch: Batch, count: int, info: DataInfo) -> None:
        self._batch, self.info = batch, info
        self.labels = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, seed: int) -> Tensor:
        """As they stand."""
        del seed
        return torch.arange(len(self))

    def batch(self, indices: Any, **view: Any) -> Batch:
        """The one batch, as long as it is asked for."""
        del view
        return self._batch[0][: len(indices)], self._batch[1][: len(indices)]

    def stream(self, pieces: Sequence[Tensor], **view: Any) -> Generator[Batch, None, None]:
        """The one batch for each piece."""
        for piece in pieces:
            yield self.batch(piece, **view)


def loading(modality: str, rounds: int, seconds: float) -> Loading:
    """Measure one modality with the data and the model of its search file."""
    experiment = load_experiment(SEARCH_FILES[modality])
    kept = load(experiment.data)
    streamed = load(replace(experiment.data, window=WINDOW))
    size = experiment.training.batch_size
    measures: dict[str, Callable[[], float]] = {
        "training": _stepping(experiment, kept, seconds),
        "in_memory": lambda: _reading(kept, size, seconds),
        "streamed": lambda: _reading(streamed, size, seconds),
    }
    found = _in_turns(measures, rounds)
    return Loading(
        modality=modality,
        **{name: median(values) for name, values in found.items()},
        in_memory_ratio=_ratio(found["in_memory"], found["training"]),
        streamed_ratio=_ratio(found["streamed"], found["training"]),
    )


def pictures(source: DataConfig, folder: Path, rounds: int) -> Pictures:
    """Measure passes over the same JPEG bytes, ours and torchvision's."""
    names = _export(source, folder)
    ours = load(DataConfig(str(folder / "pictures.parquet"), window=WINDOW, validation=0.001))
    theirs = _image_folder(folder / "pictures", ours)
    measures = {"ours": lambda: _passing(ours), "torchvision": lambda: _passing_over(theirs, names)}
    found = _in_turns(measures, rounds)
    ratio = _ratio(found["ours"], found["torchvision"])
    return Pictures(median(found["ours"]), median(found["torchvision"]), ratio)


def memory(folder: Path) -> Iterator[Memory]:
    """Read small and large tables, streamed with one window and kept in memory."""
    for windows in (4, 16, 64):
        rows = windows * MEMORY_WINDOW
        table = _noise(folder / f"{rows}.parquet", rows)
        mib = PICTURE_BYTES / 2**20
        yield Memory(
            table_mib=rows * mib,
            window_mib=MEMORY_WINDOW * mib,
            streamed_mib=_growth_mib(table, MEMORY_WINDOW),
            in_memory_mib=_growth_mib(table, None),
        )


def _in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """All measures once unrecorded, then in turn, so that a slow minute is slow for all."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if turn:
                found[name].append(value)
    return found


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median(mine / other for mine, other in zip(ours, theirs, strict=True))


def _stepping(experiment: Experiment, data: Dataset, seconds: float) -> Callable[[], float]:
    """Samples per second that training takes: epochs of the loop over a batch that is there."""
    size = experiment.training.batch_size
    batch = data.train.batch(range(size))

    def measure(steps: int) -> float:
        config: TrainingConfig = replace(
            experiment.training_config(),
            recipe=replace(experiment.training, epochs=1, warmup_epochs=0),
        )
        fixed = replace(
            data, train=Fixed(batch, steps * size, data.info), validation=Fixed(batch, 1, data.info)
        )
        (report,) = Training(config, fixed, {}).epochs()
        return steps * size / report.seconds["train"]

    steps = max(4, int(seconds * measure(4) / size))
    return lambda: measure(steps)


def _reading(data: Dataset, size: int, seconds: float) -> float:
    """Samples per second of the training view, pass after pass until the time is up."""
    began, seen, epoch = time.perf_counter(), 0, 0
    while (spent := time.perf_counter() - began) < seconds:
        pieces = global_batches(data.train.order(epoch), size)
        for _, labels in data.train.stream(pieces, epoch=epoch, workers=WORKERS):
            seen += len(labels)
            if time.perf_counter() - began > seconds:
                break
        epoch += 1
    return seen / spent


def _passing(data: Dataset) -> float:
    began = time.perf_counter()
    pieces = global_batches(data.train.order(0), BATCH)
    seen = sum(len(labels) for _, labels in data.train.stream(pieces, epoch=0, workers=WORKERS))
    return seen / (time.perf_counter() - began)


def _passing_over(loader: Any, count: int) -> float:
    began = time.perf_counter()
    seen = sum(len(labels) for _, labels in loader)
    assert seen == count
    return seen / (time.perf_counter() - began)


def _image_folder(folder: Path, data: Dataset) -> Any:
    """torchvision's dataset and torch's loader, as their documentation joins them."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    normalise = transforms.Normalize(data.normalisation.mean, data.normalisation.std)
    seen = transforms.Compose([transforms.ToTensor(), normalise])
    return DataLoader(
        ImageFolder(str(folder), seen),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )


def _export(source: DataConfig, folder: Path) -> int:
    """The training rows as JPEG files by class, and the same bytes in one Parquet file."""
    stored = pq.read_table(source.source)
    declared = json.loads(stored.schema.metadata[b"dataset"])
    encoded = []
    for row in stored.to_pylist():
        place = folder / "pictures" / row["label_name"]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.frombuffer(row["data"], np.uint8).reshape(declared["shape"])
        made = io.BytesIO()
        Image.fromarray(pixels).save(made, "jpeg", quality=90)
        encoded.append(made.getvalue())
        (place / f"{len(encoded)}.jpg").write_bytes(made.getvalue())
    columns = {name: stored.column(name) for name in ("id", "label", "label_name")}
    columns["split"] = ["test", *["train"] * (len(encoded) - 1)]
    _write(
        folder / "pictures.parquet", columns | {"data": encoded}, declared | {"encoding": "jpeg"}
    )
    return len(encoded)


def _noise(path: Path, rows: int) -> Path:
    """A table of random pictures."""
    draw = np.random.default_rng(0)
    labels = np.arange(rows) % 2
    columns = {
        "id": [str(row) for row in range(rows)],
        "split": ["test" if row < 2 else "train" for row in range(rows)],
        "label": labels,
        "label_name": [str(label) for label in labels],
        "data": [draw.bytes(PICTURE_BYTES) for _ in range(rows)],
    }
    declared = {"modality": "image", "dtype": "uint8", "shape": [64, 64, 3], "classes": ["0", "1"]}
    _write(path, columns, declared)
    return path


def _write(path: Path, columns: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    table = pa.table(columns).replace_schema_metadata({"dataset": json.dumps(declared)})
    pq.write_table(table, path, row_group_size=ROWS_IN_GROUP)


def _growth_mib(table: Path, window: int | None) -> float:
    """Of a process of its own that reads a table once."""
    command = [sys.executable, __file__, "--read-once", str(table)]
    if window is not None:
        command += ["--window", str(window)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _read_once(table: str, window: int | None) -> None:
    """What the process of `_growth_mib` does: it prints the largest of what it saw."""
    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_info().rss
    largest = before
    train = load(DataConfig(table, window=window, validation=0.001)).train
    for _ in train.stream(global_batches(train.order(0), BATCH), epoch=0, workers=WORKERS):
        largest = max(largest, process.memory_info().rss)
    print((largest - before) / 2**20)


def _show(figures: Sequence[Loading | Pictures | Memory]) -> None:
    for figure in figures:
        if isinstance(figure, Loading):
            print(
                f"{figure.modality:<6} training takes {figure.training:7.0f} samples/s; in memory "
                f"{figure.in_memory:7.0f} ({figure.in_memory_ratio:.2f} times), streamed "
                f"{figure.streamed:7.0f} ({figure.streamed_ratio:.2f} times)"
            )
        elif isinstance(figure, Pictures):
            print(
                f"JPEG   ours {figure.ours:.0f} pictures/s, ImageFolder + DataLoader "
                f"{figure.torchvision:.0f}: {figure.ratio:.2f} times"
            )
        else:
            print(
                f"memory reading a table of {figure.table_mib:3.0f} MiB takes "
                f"{figure.streamed_mib:3.0f} MiB streamed in windows of {figure.window_mib:.0f} "
                f"MiB, {figure.in_memory_mib:3.0f} MiB kept in memory"
            )
    print(f"aimed at: {TARGET} times each")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modalities", nargs="*", choices=SEARCH_FILES, default=[*SEARCH_FILES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measure")
    parser.add_argument("--skip-pictures", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read-once", help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.read_once:
        _read_once(parsed.read_once, parsed.window)
        return
    torch.set_num_threads(1)
    figures: list[Loading | Pictures | Memory] = []
    for modality in parsed.modalities:
        figures.append(loading(modality, parsed.rounds, parsed.seconds))
        print(f"measured: {figures[-1]}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if not parsed.skip_pictures:
            source = load_experiment(SEARCH_FILES["image"]).data
            figures.append(pictures(source, Path(folder), parsed.rounds))
        if not parsed.skip_memory:
            figures.extend(memory(Path(folder)))
    if parsed.json:
        print(json.dumps([asdict(figure) for figure in figures]))
    else:
        _show(figures)


if __name__ == "__main__":
    main()

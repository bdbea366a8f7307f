"""A wrong input, and what the command line must do with it: refuse it, in one message, at once."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.cli import main
from orchestrator.conduct import study

CANARY = "canary-Zx81-secret"
"""Stands wherever a person might put a password; no message may repeat it."""

BASE = """\
name: mine
data: {source: digits}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
training: {epochs: 2}
"""
LENDING = BASE + "auxiliaries: {other: {weights: other.pt}}\npathway: {auxiliary: other}\n"
TABLE = BASE.replace("digits", "table.parquet")

Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Wrong:
    """One wrong input: an experiment file, overrides, or a whole command line."""

    name: str
    told: str
    """Patterns that the message must match, one on each line."""
    text: str | bytes = BASE
    sets: Sequence[str] = ()
    arguments: Sequence[str] = ("search", "exp.yaml")
    code: int = 2
    prepare: Prepare | None = None
    """Makes what the file names, in the working folder."""
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 5.0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Desk:
    """A working folder in which a person gives commands; home, caches and spools lie in it too."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def refuses(self, wrong: Wrong) -> str:
        """Run it and check everything that a refusal promises; the message."""
        self._lay_out(wrong)
        self.monkeypatch.setattr(study._Run, "go", _started)
        before = tree(self.folder)
        sets = [word for override in wrong.sets for word in ("--set", override)]
        self.capsys.readouterr()
        began = time.monotonic()
        code = main([*wrong.arguments, *sets])
        elapsed = time.monotonic() - began
        out, err = self.capsys.readouterr()
        assert (code, out) == (wrong.code, ""), err
        check_message(err, wrong)
        assert tree(self.folder) == before, tree(self.folder) ^ before
        assert elapsed < wrong.seconds
        return err

    def _lay_out(self, wrong: Wrong) -> None:
        self.monkeypatch.chdir(self.folder)
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
            self.monkeypatch.setenv(name, str(self.folder / "home"))
        for name, value in wrong.environment.items():
            self.monkeypatch.setenv(name, value)
        text = wrong.text.encode() if isinstance(wrong.text, str) else wrong.text
        (self.folder / "exp.yaml").write_bytes(text)
        if wrong.prepare is not None:
            wrong.prepare(self.folder)


def _started(run: object, address: object) -> None:
    """In the place of a study's work: nothing may come this far."""
    raise AssertionError("it was started")


def check_message(err: str, wrong: Wrong) -> None:
    """One message, and a good one."""
    assert err.startswith("orchestrator: "), err
    assert err.count("orchestrator: ") == 1, err
    first, *more = err.splitlines()
    assert all(line.startswith("  ") for line in more), err
    assert not more or re.search(r": \d+ problems$", first), err
    assert "Traceback" not in err
    assert "bug" not in err
    assert CANARY not in err
    for pattern in wrong.told.splitlines():
        assert re.search(pattern.strip(), err), f"{pattern!r} is not in: {err}"


def tree(folder: Path) -> set[str]:
    """Everything in a folder, by name."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Trap:
    """A pickle that leaves a file where it is rebuilt."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def blocks(**model: int) -> dict[str, Any]:
    """The state of a small transformer, by timm's names."""
    import torch

    size = {"width": 16, "depth": 2, "hidden": 64, **model}
    width, hidden = size["width"], size["hidden"]
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    return {
        f"blocks.{block}.{linear}.weight": torch.zeros(shape)
        for block in range(size["depth"])
        for linear, shape in shapes.items()
    }


def saved(content: Callable[[Path], object], cut: int | None = None) -> Prepare:
    """Makes other.pt: what `content` gives for the folder, as torch saves it, up to `cut` bytes."""

    def prepare(folder: Path) -> None:
        import torch

        file = folder / "other.pt"
        torch.save(content(folder), file)
        file.write_bytes(file.read_bytes()[:cut])

    return prepare


def written(content: bytes, name: str = "other.pt") -> Prepare:
    """Makes a file of these bytes."""
    return lambda folder: (folder / name).write_bytes(content)


Columns = dict[str, Any]
CLASSES = ["cat", "dog"]
DECLARED = {"modality": "image", "dtype": "uint8", "shape": [8, 8], "classes": CLASSES}


KINDS = {"label": pa.int32(), "data": pa.binary()}


def columns(count: int = 12, split: str | None = None) -> Columns:
    """Rows of grey 8 x 8 images; every fourth is a test row unless `split` says otherwise."""
    return {
        "id": [f"row-{row}" for row in range(count)],
        "split": [split or ("test" if row % 4 == 3 else "train") for row in range(count)],
        "label": [row % 2 for row in range(count)],
        "label_name": [CLASSES[row % 2] for row in range(count)],
        "data": [bytes([row % 251] * 64) for row in range(count)],
    }


def table(
    change: Callable[[Columns], object] = lambda rows: None,
    *,
    declared: Mapping[str, object] = DECLARED,
    name: str = "table.parquet",
    **rows: Any,
) -> Prepare:
    """Makes a data file: `columns(**rows)` after `change`."""

    def prepare(folder: Path) -> None:
        made = columns(**rows)
        change(made)
        typed = {
            key: values if isinstance(values, pa.Array) else pa.array(values, _kind(key))
            for key, values in made.items()
        }
        metadata = {"dataset": json.dumps(declared)}
        pq.write_table(pa.table(typed).replace_schema_metadata(metadata), folder / name)

    return prepare


def _kind(column: str) -> pa.DataType:
    return KINDS.get(column, pa.string())


def cell(column: str, row: int, value: Any) -> Callable[[Columns], None]:
    """One value changed."""

    def change(rows: Columns) -> None:
        rows[column][row] = value

    return change


def not_finite(rows: Columns) -> None:
    """Samples of float32, one of them with a NaN."""
    values = np.zeros((12, 16), np.float32)
    values[6, 3] = np.nan
    rows["data"] = [row.tobytes() for row in values]

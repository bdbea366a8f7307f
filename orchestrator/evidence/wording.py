"""How figures are written: one way for the terminal, the report and the verdict.

An accuracy, or what another task has in its place, is a fraction in the record and is shown in
percent; differences of them are points. Everything else is shown as it is, with four significant
digits.
"""

import math
from dataclasses import dataclass
from typing import Literal

from m2pt.data.config import FIGURES

Mode = Literal["max", "min"]

_MISSING = "–"
_FRACTIONS = frozenset(name for told in FIGURES.values() for name in told)
_WORDS = {"map": "mAP", "miou": "instance mIoU", "class_miou": "class mIoU"}


@dataclass(frozen=True)
class Measure:
    """What is compared: the key of a metric, and which direction is better."""

    name: str
    mode: Mode = "max"

    @property
    def is_fraction(self) -> bool:
        """True for accuracies and their like, recorded in 0..1 and shown in percent."""
        return self.name.rpartition("/")[2] in _FRACTIONS

    @property
    def split(self) -> Literal["test", "validation", "training"]:
        """The split that the figure was read on."""
        prefix = self.name.partition("/")[0]
        if prefix == "test":
            return "test"
        return "training" if prefix == "train" else "validation"

    @property
    def title(self) -> str:
        """The words for an axis or a column, such as ``validation accuracy, %``."""
        key = self.name.partition("/")[2] or self.name
        word = _WORDS.get(key, key)
        return f"{self.split} {word}{', %' if self.is_fraction else ''}"

    def on_test(self) -> "Measure":
        """The same measure read on the test split."""
        word = self.name.partition("/")[2] or self.name
        return Measure(f"test/{word}", self.mode)

    def shown(self, value: float) -> float:
        """The value in the unit that people see (percent for fractions)."""
        return 100.0 * value if self.is_fraction else value

    def better(self, difference: float) -> bool:
        """Whether a difference (ours minus theirs) is a gain."""
        return difference > 0 if self.mode == "max" else difference < 0

    def level(self, value: float | None) -> str:
        """A level, such as ``92.50 %`` or ``0.3123``."""
        if value is None or not math.isfinite(value):
            return _MISSING
        return f"{self.shown(value):.2f} %" if self.is_fraction else f"{value:.4g}"

    def level_with_spread(self, mean: float | None, std: float | None, n: int) -> str:
        """Mean ± standard deviation and the number of seeds, without unit: ``92.50 ± 0.31 (3)``."""
        if mean is None or not math.isfinite(mean):
            return _MISSING
        if self.is_fraction:
            return f"{100 * mean:.2f}{'' if std is None else f' ± {100 * std:.2f}'} ({n})"
        return f"{mean:.4g}{'' if std is None else f' ± {std:.2g}'} ({n})"

    def difference(self, value: float | None) -> str:
        """A signed difference without its unit, such as ``+1.2``."""
        if value is None or not math.isfinite(value):
            return _MISSING
        if self.is_fraction:
            return f"{_no_negative_zero(100 * value, 2):+.2f}"
        return f"{_no_negative_zero(value, 6):+.4g}"

    def distance(self, value: float) -> str:
        """An unsigned difference with its unit, such as ``1.20 points``."""
        if self.is_fraction:
            return f"{abs(100 * value):.2f} points"
        return f"{abs(value):.4g}"


def _no_negative_zero(value: float, digits: int) -> float:
    """``-0.001`` rounds to ``-0.00``, which reads like a loss: make it plain zero."""
    return 0.0 if round(value, digits) == 0 else value


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``0.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None or not math.isfinite(seconds):
        return _MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(size_bytes: float) -> str:
    """Bytes as people say them, in powers of ten: ``812 B``, ``4.8 MB``, ``1.2 GB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def count(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

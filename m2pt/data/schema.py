"""What a data file says of itself, and what its samples look like once prepared (stdlib only)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from m2pt.data.config import MODALITIES, Modality, Task

DType = Literal["uint8", "int16", "float16", "float32"]
Encoding = Literal["raw", "jpeg", "png"]

_DTYPES: dict[Modality, tuple[DType, ...]] = {
    "image": ("uint8", "float16", "float32"),
    "audio": ("int16", "float32"),
    "video": ("uint8", "float16", "float32"),
    "point": ("float16", "float32"),
}
_AXES: dict[Modality, tuple[str, ...]] = {
    "image": ("HWC", "HW"),
    "audio": ("S",),
    "video": ("THWC", "THW"),
    "point": ("NX",),
}
_BYTES: dict[DType, int] = {"uint8": 1, "int16": 2, "float16": 2, "float32": 4}
LARGEST_SAMPLE_BYTES = 2**30
HIGHEST_RATE = 1_000_000
MOST_PARTS = 2**15 - 1
_EXAMPLE = (
    '{"modality": "image", "dtype": "uint8", "shape": [64, 64, 3], "layout": "HWC RGB", '
    '"classes": ["cat", "dog"]}'
)


class DataError(ValueError):
    """The data cannot be used; the message names the file, the place, the rule and the remedy."""


class DataAway(OSError):
    """The data cannot be reached just now, whatever was asked; the same may work later."""


@dataclass(frozen=True)
class FrontEnd:
    """How a waveform becomes log-mel frames (see `audio`).

    A frame every 10 ms, each over 25 ms, zero-padded to a power of two for the Fourier transform;
    128 bands from 22.05 kHz of sample rate on, 96 from 16 kHz, 64 from 8 kHz, 32 from 2 kHz.
    Frames are made up to a multiple of 16, so that the usual patches fit.
    """

    LENGTH_MS: ClassVar[int] = 25
    SHIFT_MS: ClassVar[int] = 10

    rate: int
    samples: int

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.rate * self.SHIFT_MS // 1000

    @property
    def window(self) -> int:
        """Samples under one frame."""
        return self.rate * self.LENGTH_MS // 1000

    @property
    def transform(self) -> int:
        """Length of the Fourier transform."""
        return 1 << (self.window - 1).bit_length()

    @property
    def bands(self) -> int:
        """Number of mel bands, F: fewer where a narrow band would hold no frequency at all."""
        enough = {2000: 16, 8000: 32, 16000: 64, 22050: 96}
        return next((bands for rate, bands in enough.items() if self.rate < rate), 128)

    @property
    def frames(self) -> int:
        """Number of frames, T."""
        heard = 1 + max(0, self.samples - self.window) // self.hop
        return 16 * math.ceil(heard / 16)


@dataclass(frozen=True)
class Schema:
    """One data set as stored: `shape` and `dtype` are those of one row of the column `data`.

    With `encoding` jpeg or png a row of it is an encoded picture that decodes to them. `task` says
    which columns tell of a sample (`columns.LABEL_COLUMNS`).
    """

    modality: Modality
    dtype: DType
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    sample_rate: int = 0
    encoding: Encoding = "raw"
    task: Task = "classes"
    parts: tuple[tuple[str, ...], ...] = ()
    """With task parts: the names of each class's own, numbered through in the order of classes."""

    @property
    def sample_bytes(self) -> int:
        """Length of one sample once it is decoded."""
        return _BYTES[self.dtype] * math.prod(self.shape)

    @property
    def prepared_shape(self) -> tuple[int, ...]:
        """Shape of one prepared sample, as in `DataInfo.shape`."""
        if self.modality == "audio":
            front = FrontEnd(self.sample_rate, self.shape[0])
            return (1, front.frames, front.bands)
        if self.modality == "point":
            return self.shape
        plain = {"image": 2, "video": 3}[self.modality]
        channels = self.shape[plain] if len(self.shape) > plain else 1
        return (channels, *self.shape[:plain])


def parse(declared: Mapping[str, Any], file: str) -> Schema:
    """The schema that the JSON object under the metadata key `dataset` declares.

    Raises:
        DataError: a key is missing or breaks its rule.
    """
    for key in ("modality", "dtype", "shape", "classes"):
        if key not in declared:
            raise DataError(
                f"{file}: schema metadata `dataset` has no key {key!r}; "
                f"write an object such as {_EXAMPLE}"
            )
    modality = _modality(declared["modality"], file)
    if declared["dtype"] not in _DTYPES[modality]:
        raise _bad(file, "dtype", f"one of {', '.join(_DTYPES[modality])} for {modality}", declared)
    found = Schema(
        modality=modality,
        dtype=declared["dtype"],
        shape=_shape(modality, declared, file),
        classes=_classes(declared, file),
        sample_rate=_sample_rate(modality, declared, file),
        encoding=_encoding(modality, declared, file),
        task=task_of(declared, file),
        parts=_parts(modality, declared, file),
    )
    if found.sample_bytes > LARGEST_SAMPLE_BYTES:
        rule = f"of one sample, of at most {LARGEST_SAMPLE_BYTES:,} bytes"
        raise _bad(file, "shape", rule, declared)
    return found


def _modality(value: object, file: str) -> Modality:
    name = "point" if value == "pointcloud" else value
    for modality in MODALITIES:
        if name == modality:
            return modality
    raise _bad(file, "modality", f"one of {', '.join(MODALITIES)}", {"modality": value})


def _shape(modality: Modality, declared: Mapping[str, Any], file: str) -> tuple[int, ...]:
    shape, axes = declared["shape"], _AXES[modality]
    rule = f"{len(axes[0])} whole numbers above 0 (axes {' or '.join(axes)}) for {modality}"
    if not isinstance(shape, list) or len(shape) not in {len(names) for names in axes}:
        raise _bad(file, "shape", rule, declared)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise _bad(file, "shape", rule, declared)
    if modality == "point" and shape[1] != 3:
        raise _bad(file, "shape", "[points, 3] (x, y, z) for point", declared)
    layout = str(declared.get("layout", axes[0])).split(" ")[0]
    if modality in ("image", "video") and layout not in axes:
        raise _bad(file, "layout", f"{' or '.join(axes)}: channels last", declared)
    return tuple(shape)


def _classes(declared: Mapping[str, Any], file: str) -> tuple[str, ...]:
    classes = declared["classes"]
    # A part segmentation of one category is one: PartNet's are trained one by one.
    least, words = (1, "one") if declared.get("task") == "parts" else (2, "two")
    if not isinstance(classes, list) or len(classes) < least or len(set(classes)) != len(classes):
        raise _bad(file, "classes", f"a list of {words} or more distinct names", declared)
    return tuple(str(name) for name in classes)


def _sample_rate(modality: Modality, declared: Mapping[str, Any], file: str) -> int:
    rate = declared.get("sample_rate", 0)
    if modality == "audio" and not (isinstance(rate, int) and 1000 <= rate <= HIGHEST_RATE):
        rule = f"samples per second, 1000 to {HIGHEST_RATE}, for audio"
        raise _bad(file, "sample_rate", rule, declared)
    return rate if modality == "audio" else 0


def _encoding(modality: Modality, declared: Mapping[str, Any], file: str) -> Encoding:
    encodings: tuple[Encoding, ...] = get_args(Encoding)
    for encoding in encodings:
        if declared.get("encoding", "raw") == encoding:
            break
    else:
        raise _bad(file, "encoding", f"one of {', '.join(encodings)}", declared)
    if encoding == "raw":
        return encoding
    if modality != "image" or declared["dtype"] != "uint8" or declared["shape"][2:] != [3]:
        raise _bad(
            file, "encoding", "raw, but for images of uint8 and [height, width, 3]", declared
        )
    return encoding


def task_of(declared: Mapping[str, Any], file: str) -> Task:
    """What is told of a sample. Raises DataError where that is none of the tasks."""
    tasks: tuple[Task, ...] = get_args(Task)
    for task in tasks:
        if declared.get("task", "classes") == task:
            return task
    raise _bad(file, "task", f"one of {', '.join(tasks)}", declared)


def _parts(
    modality: Modality, declared: Mapping[str, Any], file: str
) -> tuple[tuple[str, ...], ...]:
    if task_of(declared, file) != "parts":
        return ()
    if modality != "point":
        raise _bad(file, "task", f"classes or labels for {modality}: only points have", declared)
    named, names = declared.get("parts"), [str(name) for name in declared["classes"]]
    rule = (
        'with the task "parts": an object that names the parts of each class, as in '
        '{"table": ["top", "legs"], "mug": ["body", "handle"]}'
    )
    if not isinstance(named, dict) or named.keys() != set(names):
        raise _bad(file, "parts", rule, declared)
    for own in named.values():
        if not isinstance(own, list) or not own or len(set(map(str, own))) != len(own):
            raise _bad(file, "parts", f"{rule}, one or more distinct names each", declared)
    parts = tuple(tuple(map(str, named[name])) for name in names)
    if not 2 <= sum(map(len, parts)) <= MOST_PARTS:
        raise _bad(file, "parts", f"2 to {MOST_PARTS:,} of them together", declared)
    return parts


def _bad(file: str, key: str, rule: str, declared: Mapping[str, Any]) -> DataError:
    return DataError(
        f"{file}: schema metadata `dataset`, key {key!r}: {rule}, "
        f"but it is {declared.get(key)!r}; write the file again with it put right"
    )

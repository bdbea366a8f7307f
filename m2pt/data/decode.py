"""From stored bytes to samples: rows of one row group fetched together, decoded where needed."""

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from m2pt.data.parquet import Rows, Table
from m2pt.data.schema import DataError

_THREADS = 4  # of a table that is read whole


@dataclass(frozen=True, eq=False)
class Fetched:
    """The stored samples of `rows` (n,), ascending, of one row group.

    `stored` is their bytes, (n, bytes of a sample) uint8, or their encoded pictures.
    """

    rows: Rows
    stored: npt.NDArray[np.uint8] | list[bytes]


def fetch(table: Table, group: int, wanted: Rows) -> Fetched:
    """The samples of the rows `wanted` (ascending) of a row group, as they are stored.

    Raises:
        DataError: the file is damaged, or a sample is empty or has another length than it should.
        DataAway: the server that has it cannot be reached.
    """
    first, end = table.starts[group : group + 2].tolist()
    column = table.read_column(group, "data")
    _check_lengths(table, column, first)
    if len(wanted) < end - first:
        column = column.take(pa.array(wanted - first))
    if table.schema.encoding != "raw":
        return Fetched(wanted, column.to_pylist())
    flat = _flat(column, table.schema.sample_bytes)
    return Fetched(wanted, flat.reshape(len(wanted), table.schema.sample_bytes))


def collect(table: Table, fetched: Mapping[int, Fetched], rows: Rows) -> npt.NDArray[np.generic]:
    """The samples (len(rows), *schema.shape) of `rows`, in any order, out of their row groups.

    Raises:
        DataError: a sample cannot be decoded, or holds a value that is not finite.
    """
    samples = np.empty((len(rows), *table.schema.shape), dtype=table.schema.dtype)
    groups = table.group_of(rows)
    for group in np.unique(groups).tolist():
        here = np.flatnonzero(groups == group)
        samples[here] = _decoded(table, fetched[group], rows[here])
    return samples


def read_samples(table: Table, rows: Rows) -> npt.NDArray[np.generic]:
    """The samples of `rows` (ascending), all in memory, (len(rows), *schema.shape).

    Raises:
        DataError: as `fetch` and `collect`.
        DataAway: as `fetch`.
    """
    samples = np.empty((len(rows), *table.schema.shape), dtype=table.schema.dtype)
    bounds = np.searchsorted(rows, table.starts)

    def read(group: int) -> None:
        first, end = bounds[group : group + 2].tolist()
        wanted = rows[first:end]
        samples[first:end] = _decoded(table, fetch(table, group, wanted), wanted)

    groups = np.flatnonzero(np.diff(bounds)).tolist()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(read, groups):
            pass
    return samples


def _decoded(table: Table, fetched: Fetched, rows: Rows) -> npt.NDArray[np.generic]:
    schema, places = table.schema, np.searchsorted(fetched.rows, rows)
    if isinstance(fetched.stored, list):
        pictures: Sequence[bytes] = fetched.stored
        return np.stack(
            [
                _picture(table, pictures[place], row)
                for place, row in zip(places.tolist(), rows.tolist(), strict=True)
            ]
        )
    dtype = np.dtype(schema.dtype).newbyteorder("<")
    samples = fetched.stored[places].view(dtype).reshape(len(rows), *schema.shape)
    if dtype.kind == "f":
        finite = np.isfinite(samples).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise _bad(table, int(rows[finite.argmin()]), "holds NaN or infinity; mend it")
    return samples


def _picture(table: Table, encoded: bytes, row: int) -> npt.NDArray[np.uint8]:
    """One decoded picture (H, W, 3)."""
    (height, width, _), kind = table.schema.shape, table.schema.encoding
    try:
        if kind == "jpeg" and _jpeg_size(encoded) == (height, width, 3):
            # Pillow's decoder without its reader of headers, which takes as long for small ones.
            return np.asarray(Image.frombytes("RGB", (width, height), encoded, "jpeg", "RGB", ""))
        with Image.open(io.BytesIO(encoded), formats=(kind,)) as picture:
            if picture.size == (width, height):
                return np.asarray(picture.convert("RGB"))
            found = f"{picture.size[1]} x {picture.size[0]}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad(table, row, f"no sound {kind.upper()} ({error}); mend it") from error
    raise _bad(table, row, f"{height} x {width} pixels, but it has {found}; resize it")


def _jpeg_size(encoded: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels from the frame header of a JPEG; None where there is none."""
    place = 2
    while encoded[place : place + 1] == b"\xff" and place + 10 <= len(encoded):
        marker = encoded[place + 1]
        if 0xC0 <= marker <= 0xC2:  # baseline, extended and progressive: what Pillow writes
            height, width = (int.from_bytes(encoded[place + n : place + n + 2]) for n in (5, 7))
            return height, width, encoded[place + 9]
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
    return None


def _check_lengths(table: Table, column: pa.Array, first: int) -> None:
    lengths = np.asarray(pc.fill_null(pc.binary_length(column), -1))
    schema = table.schema
    if schema.encoding != "raw":
        wrong = np.flatnonzero(lengths <= 0)
        if len(wrong):
            raise _bad(table, first + int(wrong[0]), "is empty; fill it")
        return
    wrong = np.flatnonzero(lengths != schema.sample_bytes)
    if len(wrong):
        found = int(lengths[wrong[0]])
        told = "empty" if found < 0 else f"{found} bytes"
        raise _bad(
            table,
            first + int(wrong[0]),
            f"{schema.sample_bytes} bytes for {schema.dtype} of shape {list(schema.shape)}, "
            f"but it is {told}; put `dataset` right",
        )


def _bad(table: Table, row: int, told: str) -> DataError:
    uri = table.part_of(row).file.uri
    return DataError(f"{uri}: column 'data', {table.where(row)}: {told}, or drop the row")


def _flat(column: pa.Array, sample_bytes: int) -> npt.NDArray[np.uint8]:
    """The bytes of all rows, one after the other; every row is known to be of equal length."""
    values = column.buffers()[-1]
    if values is None or not len(column):
        return np.empty(0, dtype=np.uint8)
    start = column.offset * sample_bytes
    if not pa.types.is_fixed_size_binary(column.type):
        width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        start = int(np.frombuffer(column.buffers()[1], dtype=width)[column.offset])
    count = len(column) * sample_bytes
    return np.frombuffer(values, dtype=np.uint8, count=count, offset=start)

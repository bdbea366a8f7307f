"""A look at stored samples before anything is started: as much of them as costs a second or so."""

import numpy as np

from m2pt.data.config import EMBEDDED, DataConfig
from m2pt.data.decode import collect, fetch
from m2pt.data.describe import tables
from m2pt.data.parquet import Rows, Table

_LOOKED_AT_BYTES = 64 * 2**20
_ROWS_AT_ONCE = 256


def check_samples(config: DataConfig) -> None:
    """Read samples of the data that `config` names: all of a small table, and of a large one its
    first row group, its last, and some between.

    Raises:
        DataError: a sample is missing, of another length, damaged or not finite.
        DataAway: the server that has it cannot be reached.
    """
    if config.source in EMBEDDED:
        return
    for table in tables(config):
        for group in _groups_to_look_at(table).tolist():
            _check_group(table, group)


def _check_group(table: Table, group: int) -> None:
    """Lengths say all there is to say of whole numbers; the rest is decoded, bit by bit."""
    rows = np.arange(*table.starts[group : group + 2])
    fetched = {group: fetch(table, group, rows)}
    if table.schema.encoding == "raw" and not table.schema.dtype.startswith("float"):
        return
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        collect(table, fetched, rows[start : start + _ROWS_AT_ONCE])


def _groups_to_look_at(table: Table) -> Rows:
    """Numbers of row groups, spread evenly from the first to the last."""
    groups, stored = len(table.starts) - 1, _data_bytes(table)
    if stored <= _LOOKED_AT_BYTES or groups < 3:
        return np.arange(groups)
    count = max(2, groups * _LOOKED_AT_BYTES // stored)
    return np.unique(np.linspace(0, groups - 1, count).astype(np.int64))


def _data_bytes(table: Table) -> int:
    """Size of the column `data`, decompressed."""
    total = 0
    for part in table.parts:
        column = part.metadata.schema.to_arrow_schema().get_field_index("data")
        for group in range(part.metadata.num_row_groups):
            total += part.metadata.row_group(group).column(column).total_uncompressed_size
    return total

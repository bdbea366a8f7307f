"""Events on the driver's own disk, until the store has them.

A spool outlives a driver that was killed, and a store that is away when the driver ends. It is
a convenience of one machine: without it, what is lost is what checkpoints do not tell.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from orchestrator.storage.formats import check_format
from orchestrator.tracking.events import Event, from_line

_LOG = logging.getLogger(__name__)
_REWRITE_BYTES = 1 << 20
FORMAT = 1
_HEADER = b"spool %d\n" % FORMAT
"""The first line; one of the time before formats were numbered begins with an event."""


class Spool:
    """The spool of one study under one lease. A disk that refuses only costs a warning."""

    def __init__(self, folder: Path, study: str, token: str) -> None:
        """`study` is the study's full address, store and all; `token` the lease's."""
        self._path = _path(folder, study, token)
        self._file: BinaryIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            self._file.write(_HEADER)
        except OSError as error:
            self._refused(error)

    def add(self, number: int, line: str) -> None:
        """Keep the event whose text is `line`, the `number`-th of this epoch's writer."""
        if self._file is not None:
            try:
                self._file.write(f"{number} {line}\n".encode())
            except OSError as error:
                self._refused(error)

    def secure(self) -> None:
        """Have it outlive a power cut, as long as the store is away."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._refused(error)

    def clear(self) -> None:
        """The store has every event: begin anew, when it is worth it."""
        if self._file is not None and self._file.tell() > _REWRITE_BYTES:
            self._file.seek(len(_HEADER))
            self._file.truncate()

    def close(self, *, remove: bool) -> None:
        """End writing; `remove` when the store has every event."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if remove:
            with suppress(OSError):  # it may never have been there
                self._path.unlink()

    def _refused(self, error: OSError) -> None:
        _LOG.warning("events are not spooled to %s: %s", self._path, error.strerror or error)
        if self._file is not None:
            self._file.close()
            self._file = None


def left_over(folder: Path, study: str, token: str) -> Iterator[tuple[int, Event]]:
    """What the holder of a lease left in its spool: (number, event), up to the first torn line.

    Raises WrongFormat for a spool of a newer release.
    """
    path = _path(folder, study, token)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return
    if lines and (header := re.fullmatch(rb"spool (\d{1,9})\n", lines[0])):
        check_format(int(header[1]), FORMAT, str(path))
        del lines[0]
    for line in lines:
        number, _, text = line.partition(b" ")
        try:
            if not line.endswith(b"\n"):
                return
            yield int(number), from_line(text)
        except ValueError:
            return


def remove_others(folder: Path, study: str, token: str) -> None:
    """Remove the spools of all earlier leases of this study."""
    own = _path(folder, study, token)
    for path in folder.glob(f"{own.name.partition('-')[0]}-*.jsonl"):
        if path != own:
            path.unlink(missing_ok=True)


def _path(folder: Path, study: str, token: str) -> Path:
    return folder / f"{hashlib.sha256(study.encode()).hexdigest()[:16]}-{token[:16]}.jsonl"

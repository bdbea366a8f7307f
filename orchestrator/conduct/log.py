"""What a study's driver says, kept under its prefix: it outlives the terminal and Ray's head.

A store cannot append, so the log is a row of numbered objects, `logs/<epoch>-<n>.log`, written
every few seconds while there is something new. Nothing here ever ends a study.
"""

import io
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from orchestrator import environment
from orchestrator.errors import OrchestratorError, StorageError
from orchestrator.storage import layout
from orchestrator.storage.uri import Missing, Store

FLUSH_SECONDS = 3.0
SLOWEST_SECONDS = 30.0
LAST_SECONDS = 10.0
LARGEST_BYTES = 1 << 20
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


def pause(pieces: int) -> float:
    """Seconds until the next piece: rarer as they grow many, so that a week gives thousands."""
    return min(SLOWEST_SECONDS, FLUSH_SECONDS + pieces / 20)


class StudyLog:
    """The log of one driver. A context manager; lines are written as to a text file."""

    def __init__(self, store: Store, study: str, epoch: int) -> None:
        """`epoch` is the driver's fencing epoch."""
        self._store, self._study, self._epoch = store, study, epoch
        self._lock = threading.Lock()
        self._line, self._waiting, self._dropped, self._pieces = "", "", 0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"log-{study}", daemon=True)

    def write(self, text: str) -> None:
        """Take some text; whole lines get the time before them (UTC)."""
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._take(line)

    def __enter__(self) -> "StudyLog":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Also say what ended the study, which the terminal is told only later."""
        if isinstance(error, OrchestratorError):
            self.write(f"\norchestrator: {error}\n")
        elif error is not None:
            self.write("\n" + "".join(traceback.format_exception(error)))
        self.write("\n" if self._line else "")
        self._ended.set()
        self._thread.join(LAST_SECONDS)
        if not self._thread.is_alive():  # or it still waits for a store that is away
            self._flush()

    def _take(self, line: str) -> None:
        plain = environment.redacted(_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]))
        if not plain.strip():
            return
        if len(self._waiting) > LARGEST_BYTES:  # the store has been away for long
            self._dropped += 1
            return
        self._waiting += f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}  {plain}\n"

    def _keep(self) -> None:
        while not self._ended.wait(pause(self._pieces)):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            text, dropped = self._waiting, self._dropped
            self._waiting, self._dropped = "", 0
        if dropped:
            text += f"({dropped} lines are missing here: the store was away)\n"
        if not text:
            return
        key = layout.log(self._study, self._epoch, self._pieces + 1)
        try:
            self._store.put(key, text.encode())
            self._pieces += 1
        except StorageError:
            with self._lock:
                self._waiting = text + self._waiting


class Tee(io.TextIOBase):
    """stderr that also goes to the log."""

    def __init__(self, terminal: TextIO, log: StudyLog) -> None:
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()


def teed(log: StudyLog) -> redirect_stderr[Tee]:
    """A context manager: meanwhile, what is written to stderr also goes to the log."""
    return redirect_stderr(Tee(sys.stderr, log))


class LogReader:
    """Reads the log of a study, of all its drivers, piece by piece."""

    def __init__(self, store: Store, study: str) -> None:
        self._store, self._study = store, study
        self._read: set[str] = set()

    def new(self) -> Iterator[str]:
        """The pieces that were not read yet, in order. Raises StorageError."""
        for entry in self._store.list(layout.logs(self._study)):
            if entry.key in self._read:
                continue
            try:
                text = self._store.get(entry.key).decode(errors="replace")
            except Missing:
                continue
            self._read.add(entry.key)
            yield text

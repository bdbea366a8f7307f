"""The record of a study: append-only events under its prefix, from one writer."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator import clock, environment
from orchestrator.errors import StorageError
from orchestrator.storage import layout
from orchestrator.storage.checkpoints import Accepted, manifest_keys
from orchestrator.storage.lease import Lease, LeaseLost
from orchestrator.storage.uri import AlreadyThere, Store
from orchestrator.tracking import segments
from orchestrator.tracking.events import URGENT, Event, from_line, to_line
from orchestrator.tracking.lost import from_manifests
from orchestrator.tracking.record import StudyRecord
from orchestrator.tracking.segments import JournalReader, View, read_events
from orchestrator.tracking.spool import Spool, left_over, remove_others

__all__ = ["Event", "Journal", "JournalReader", "read_events"]

_LOG = logging.getLogger(__name__)
_MAX_EVENTS = 2000
"""In one segment."""
_MAX_CHARACTERS = 8 * 1024 * 1024
"""In one segment, but for the event that goes beyond."""
_MAX_PAUSE_SECONDS = 10.0
_OPEN_SECONDS = 30.0


class Journal:
    """The writer's end, for the owner of the lease. A context manager that closes at its end."""

    def __init__(self, store: Store, study: str, lease: Lease, spool: Spool) -> None:
        self._store = store
        self._study = study
        self._lease = lease
        self._spool = spool
        self._accepted = Accepted(lease.epoch)
        self._events: list[Event] = []
        self._record = StudyRecord()
        self._callbacks: list[Callable[[Event], None]] = []
        self._waiting: list[str] = []
        """Texts of events that no segment holds."""
        self._written = 0
        """Events of this epoch so far; those before `_written - len(_waiting)` are in segments."""
        self._segment = 0
        self._urgent = False
        self._ended = False
        self._given_up = False
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        store: Store,
        study: str,
        lease: Lease,
        *,
        spool: Path | None = None,
        flush_seconds: float = 0.5,
    ) -> "Journal":
        """Read what stands, take it over, make up for lost events from spools and manifests.

        `spool` is the folder on this machine's disk for events that the store does not have
        yet. Raises StorageError for damaged segments or a newer format, LeaseLost.
        """
        folder = spool or environment.state_folder() / "spool"
        address = f"{store.uri}/{layout.study(study)}"
        view = JournalReader(store, study).view()
        if view.epoch >= lease.epoch:
            raise lease.lost_to(view.epoch, "its journal has been taken over")
        journal = cls(store, study, lease, Spool(folder, address, lease.token))
        journal._take_over(view)
        for number, event in left_over(folder, address, view.token):
            if number >= view.flushed and event["kind"] != "takeover":
                journal.append(event)
        for event in from_manifests(store, study, journal._record, journal._accepted):
            journal.append(event)
        journal._start(flush_seconds)
        if journal.flush(_OPEN_SECONDS):
            remove_others(folder, address, lease.token)
        return journal

    @property
    def events(self) -> list[Event]:
        """All accepted events so far, in order."""
        with self._changed:
            return list(self._events)

    @property
    def record(self) -> StudyRecord:
        """The events, folded: it grows with each append, and is only to be read."""
        return self._record

    @property
    def accepted(self) -> Accepted:
        """The manifests that count from now on; for TrialCheckpoints, also on other nodes."""
        return self._accepted

    @property
    def behind(self) -> int:
        """How many events the store does not hold yet."""
        with self._changed:
            return len(self._waiting)

    def append(self, event: Mapping[str, Any]) -> bool:
        """Add an event; "time" is set unless given. From any thread; never waits for the store.

        False when it says nothing new: an epoch or checkpoint that a trial reported before,
        anything but `tested` and `exported` of a trial that has ended, a second plan of a trial.
        Raises LeaseLost; ValueError for what is no event.
        """
        self._lease.check()
        line = to_line(_without_secrets(event), now=clock.now())
        kept = from_line(line)  # what readers will see, whatever the caller does to `event`
        with self._changed:
            if self._ended:
                raise StorageError(f"the journal of study {self._study!r} is closed")
            if not self._record.is_news(kept):
                return False
            self._spool.add(self._written, line)
            self._waiting.append(line)
            self._written += 1
            self._urgent |= kept["kind"] in URGENT
            self._remember(kept)
            self._changed.notify_all()
        return True

    def subscribe(self, callback: Callable[[Event], None], *, replay: bool = False) -> None:
        """Call `callback` with every event from now on, in order; with `replay`, all before too.

        It runs inside append and has to be quick.
        """
        with self._changed:
            for event in self._events if replay else ():
                callback(event)
            self._callbacks.append(callback)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the store holds every event; False when `timeout` seconds were too few.

        Raises LeaseLost.
        """
        with self._changed:
            wanted = self._written
            self._urgent = bool(self._waiting)
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._stored >= wanted or self._lease.lost.is_set(), timeout
            )
        self._lease.check()
        return done

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and end the writer. What the store would not take stays in the spool: False."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
        self._given_up = True
        with self._changed:
            complete = not self._waiting
            self._spool.close(remove=complete)
        return complete

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _stored(self) -> int:
        """How many of this epoch's events are in segments."""
        return self._written - len(self._waiting)

    def _remember(self, event: Event) -> None:
        self._events.append(event)
        self._record.apply(event)
        for callback in self._callbacks:
            callback(event)

    def _take_over(self, view: View) -> None:
        """Write the segment that makes this epoch the one to be believed."""
        for event in view.events:
            self._remember(event)
        manifests = [key for key in manifest_keys(self._store, self._study) if view.accepted(key)]
        folder = f"{layout.study(self._study)}/"
        takeover = {
            "kind": "takeover",
            "epoch": self._lease.epoch,
            "segments": [segments.name_of(at) for at in view.segments],
            "manifests": [key.removeprefix(folder) for key in manifests],
        }
        line = to_line(takeover, now=clock.now())
        self._waiting.append(line)
        self._written = 1
        self._put(1)
        self._accepted = Accepted(self._lease.epoch, frozenset(manifests))
        self._remember(from_line(line))

    def _start(self, flush_seconds: float) -> None:
        name = f"journal-{self._study}"
        self._thread = threading.Thread(
            target=self._write_on, args=(flush_seconds,), name=name, daemon=True
        )
        self._thread.start()

    def _write_on(self, flush_seconds: float) -> None:
        """A thread: a segment now and then, the same one again while the store is away."""
        size, pause = 0, 0.0
        while not self._lease.lost.is_set():
            size = size or self._next_size(flush_seconds)
            if not size:
                break
            try:
                self._put(size)
                if pause:
                    _LOG.warning("%s takes events again", self._store.uri)
                size, pause = 0, 0.0
            except LeaseLost:
                break
            except StorageError as error:
                if not pause:
                    _LOG.warning("events stay on this machine's disk for now: %s", error)
                with self._changed:
                    self._spool.secure()
                pause = min(2 * pause or 0.25, _MAX_PAUSE_SECONDS)
                if not self._keep_trying(pause):
                    break
        with self._changed:
            self._changed.notify_all()

    def _next_size(self, flush_seconds: float) -> int:
        """Wait for events, and a moment for more: how many the next segment takes, 0 at the end."""
        # many segments make reading slow: a long study writes fewer
        pause = flush_seconds * (1 + min(self._segment // 250, 9))
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                self._changed.wait_for(lambda: self._urgent or self._ended, pause)
            self._urgent = False
            sizes = accumulate(len(line) for line in self._waiting[:_MAX_EVENTS])
            fitting = sum(size <= _MAX_CHARACTERS for size in sizes)
            return min(len(self._waiting), fitting + 1, _MAX_EVENTS)

    def _put(self, size: int) -> None:
        """Write the next segment. Raises StorageError; LeaseLost when another has written it."""
        with self._changed:
            lines, first = self._waiting[:size], self._stored
        key = layout.segment(self._study, self._lease.epoch, self._segment)
        content = segments.to_bytes(lines, token=self._lease.token, first=first)
        try:
            self._store.put(key, content, if_absent=True)
        except AlreadyThere:
            if self._store.get(key) != content:  # else an attempt before had reached the store
                self._lease.lose(f"{self._store.uri}/{key} is of another writer")
                self._lease.check()
        with self._changed:
            del self._waiting[:size]
            self._segment += 1
            if not self._waiting:
                self._spool.clear()
            self._changed.notify_all()

    def _keep_trying(self, pause: float) -> bool:
        """Sleep for `pause` seconds; False as soon as nobody waits for the store any more."""
        deadline = time.monotonic() + pause
        while not self._given_up and time.monotonic() < deadline:
            if self._lease.lost.wait(0.1):
                return False
        return not self._given_up


def _without_secrets(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a library said when something failed may hold a password; the journal is for ever."""
    said = {name: event[name] for name in ("error", "why") if isinstance(event.get(name), str)}
    return {**event, **{name: environment.redacted(text) for name, text in said.items()}}

"""One owner of a study at a time: a lease object per fencing epoch, kept alive by a counter.

An observer never compares clocks: it watches the counter and counts on its own monotonic clock.
A conditional put has several winners on some servers, so a claim is read back after a while.
"""

import json
import logging
import secrets
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from types import TracebackType

from orchestrator.errors import RequestError, StorageError
from orchestrator.storage import layout, process
from orchestrator.storage.uri import AlreadyThere, Damaged, Missing, Store

_LOG = logging.getLogger(__name__)
_FORMAT = 1


class StudyIsOwned(RequestError):
    """Another live process runs this study."""

    def __init__(self, study: str, host: str, pid: int, since: float) -> None:
        super().__init__(study, host, pid, since)
        self.study = study
        self.host = host
        self.pid = pid
        self.since = since

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).isoformat(sep=" ", timespec="seconds")
        return (
            f"study {self.study!r} is already running: process {self.pid} on {self.host},"
            f" since {since}; watch it with `orchestrator status`, or stop it first"
        )


class LeaseLost(StorageError):
    """This process is no longer the owner of its study, and must stop."""


@dataclass(frozen=True)
class Owner:
    """What a lease object says."""

    epoch: int
    token: str
    host: str
    machine: str
    """As `process.machine` says."""
    pid: int
    started: float
    """As `process.started` says: with the pid it names a process for good."""
    since: float
    """When the study was taken, in unix seconds: for people."""
    counter: int = 0
    released: bool = False

    @property
    def gone(self) -> bool:
        """Is it known for sure, without waiting, that nobody holds this lease?"""
        if self.released:
            return True
        return self.machine == process.machine() and process.started(self.pid) != self.started


class Lease:
    """The right to write under a study's prefix. A context manager that releases at its end."""

    def __init__(self, store: Store, study: str, owner: Owner) -> None:
        self._store = store
        self._study = study
        self._owner = owner
        self._why = ""
        self._ended = threading.Event()
        self._beating = threading.Lock()
        self.lost = threading.Event()
        """Set once another owner was seen."""

    @classmethod
    def acquire(
        cls,
        store: Store,
        study: str,
        *,
        heartbeat_seconds: float = 3.0,
        expiry_seconds: float = 15.0,
    ) -> "Lease":
        """Become the owner of `study` and keep being it, from a thread of its own.

        At once when nobody owns it, when its owner released it, or was a process of this
        machine that is gone; after `expiry_seconds` when its owner's counter stands still.
        Raises StudyIsOwned as soon as the counter moves, StorageError.
        """
        while True:
            newest = read_owner(store, study)
            if newest is not None and not newest.gone:
                _watch(store, study, newest, expiry_seconds)
            if (owner := _claim(store, study)) is not None:
                lease = cls(store, study, owner)
                lease._start(heartbeat_seconds)
                return lease

    @property
    def epoch(self) -> int:
        """The fencing epoch: greater than that of any owner before."""
        return self._owner.epoch

    @property
    def token(self) -> str:
        """Tells this owner from another one of the same epoch, should a server let two in."""
        return self._owner.token

    def check(self) -> None:
        """Raises LeaseLost, saying to whom, once the lease is lost."""
        if self.lost.is_set():
            raise LeaseLost(self._why)

    def lose(self, why: str) -> None:
        """Stop being the owner: somebody else was seen writing."""
        self._why = f"study {self._study!r}: lost lease epoch {self.epoch}: {why}"
        self._ended.set()
        self.lost.set()

    def release(self) -> None:
        """Give the study back, so that the next acquire is instant. May be called twice."""
        self._ended.set()
        with self._beating:
            if self.lost.is_set() or self._owner.released:
                return
            self._owner = replace(self._owner, released=True)
            try:
                self._write()
            except StorageError as error:
                _LOG.warning("the lease of study %s expires by itself: %s", self._study, error)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _start(self, heartbeat_seconds: float) -> None:
        name = f"lease-{self._study}"
        threading.Thread(
            target=self._beat_on, args=(heartbeat_seconds,), name=name, daemon=True
        ).start()

    def _beat_on(self, heartbeat_seconds: float) -> None:
        while not self._ended.wait(heartbeat_seconds):
            try:
                with self._beating:
                    self._beat()
            except StorageError as error:
                # while the store is away nobody can take the study over in it either
                _LOG.warning("the lease of study %s was not renewed: %s", self._study, error)

    def _beat(self) -> None:
        if self._ended.is_set():
            return
        newest = read_owner(self._store, self._study)
        if newest is not None and newest.token != self.token and newest.epoch >= self.epoch:
            self.lose(f"{newest.epoch} is held by process {newest.pid} on {newest.host}")
            return
        self._owner = replace(self._owner, counter=self._owner.counter + 1)
        self._write()

    def _write(self) -> None:
        self._store.put(layout.lease(self._study, self.epoch), _to_bytes(self._owner))


def read_owner(store: Store, study: str) -> Owner | None:
    """The newest lease of a study, released or not; None when nobody ever owned it."""
    epochs = [layout.parse_lease(entry.key) or 0 for entry in store.list(layout.leases(study))]
    if not epochs:
        return None
    try:
        return _read(store, study, max(epochs))
    except Missing:  # deleted by hand, just now
        return None


def _read(store: Store, study: str, epoch: int) -> Owner:
    key = layout.lease(study, epoch)
    content = store.get(key)
    try:
        said = json.loads(content)
        if said.pop("format") <= _FORMAT:
            return Owner(**said)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(
            f"{store.uri}/{key} is no lease: {error}; delete it when nobody runs the study"
        ) from error
    raise StorageError(f"{store.uri}/{key} was written by a newer release: upgrade")


def _watch(store: Store, study: str, owner: Owner, expiry_seconds: float) -> None:
    """Return when `owner` is silent, gone, or followed by another. Raises StudyIsOwned."""
    deadline = time.monotonic() + expiry_seconds
    pause = min(0.5, expiry_seconds / 10)
    while time.monotonic() < deadline:
        time.sleep(pause)
        now = read_owner(store, study)
        if now is None or now.gone:
            return
        if now.token != owner.token:  # somebody was quicker: watch the new owner
            owner, deadline = now, time.monotonic() + expiry_seconds
        elif now.counter != owner.counter:
            raise StudyIsOwned(study, now.host, now.pid, now.since)


def _claim(store: Store, study: str) -> Owner | None:
    """Take the next fencing epoch; None when somebody else took it."""
    owner = Owner(
        epoch=_next_epoch(store, study),
        token=secrets.token_hex(16),
        host=process.host(),
        machine=process.machine(),
        pid=process.own_pid(),
        started=process.started(process.own_pid()) or 0.0,
        since=time.time(),
    )
    try:
        store.put(layout.lease(study, owner.epoch), _to_bytes(owner), if_absent=True)
    except AlreadyThere:
        return None
    time.sleep(store.settle_seconds)
    return owner if read_owner(store, study) == owner else None


def _next_epoch(store: Store, study: str) -> int:
    """Above every epoch that was ever used, also if somebody deleted the leases."""
    leases = [layout.parse_lease(entry.key) or 0 for entry in store.list(layout.leases(study))]
    segments = [layout.parse_segment(entry.key) for entry in store.list(layout.journal(study))]
    return 1 + max([0, *leases, *(at.epoch for at in segments if at is not None)])


def _to_bytes(owner: Owner) -> bytes:
    return json.dumps({"format": _FORMAT, **asdict(owner)}).encode()

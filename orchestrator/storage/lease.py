"""One owner of a study at a time: a lease object per fencing epoch, kept alive by a counter.

An observer never compares clocks: it watches the counter and counts on its own monotonic clock.
A conditional put has several winners on some servers, so a claim is read back after a while.

An owner may be stopped for any time and woken after another one has taken over. What it then still
writes under its own epoch nobody reads; what knows no epochs (MLflow) it writes only while it is
`sure`.
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
from orchestrator.storage.formats import check_format
from orchestrator.storage.uri import AlreadyThere, Damaged, Missing, Store

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_LARGEST_BYTES = 64 * 1024
_LOOK_SECONDS = 0.1
_TOOK_OVER = "has taken over; what this process still writes is never read"


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

    def __init__(self, store: Store, study: str, owner: Owner, sure_seconds: float) -> None:
        self._store = store
        self._study = study
        self._owner = owner
        self._sure_seconds = sure_seconds
        self._renewed = _clock()
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
            epoch = _next_epoch(store, study)  # first: who comes after the look has taken this one
            newest = read_owner(store, study)
            if newest is not None and not newest.gone:
                _watch(store, study, newest, expiry_seconds)
            if (owner := _claim(store, study, epoch)) is not None:
                lease = cls(store, study, owner, expiry_seconds / 2)
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

    @property
    def sure(self) -> bool:
        """Whether nobody else can be the owner by now, because the lease was renewed lately.

        Judged by a clock that runs on while this process, or its machine, is stopped. Without a
        store that answers it is not sure either: the store may be away from here alone.
        """
        return not self.lost.is_set() and _clock() - self._renewed < self._sure_seconds

    def check(self) -> None:
        """Raises LeaseLost, saying to whom, once the lease is lost."""
        if self.lost.is_set():
            raise LeaseLost(self._why)

    def wait_until_sure(self, seconds: float) -> None:
        """Wait for a heartbeat, at most so long: the store may be away. Raises LeaseLost."""
        deadline = time.monotonic() + seconds
        while not (self.sure or self.lost.is_set()) and time.monotonic() < deadline:
            self.lost.wait(_LOOK_SECONDS)
        self.check()

    def confirm(self) -> None:
        """As `check`, after a look into the store. Raises LeaseLost, StorageError."""
        with self._beating:
            self._beat()
        self.check()

    def lose(self, why: str, newer: int | None = None) -> None:
        """Stop being the owner: somebody else was seen writing, under the epoch `newer`."""
        if not self.lost.is_set():
            self._why = str(self.lost_to(newer, why))
            self._ended.set()
            self.lost.set()

    def lost_to(self, newer: int | None, why: str) -> LeaseLost:
        """The error of an owner that lost to another one of the epoch `newer`."""
        epochs = self.epoch if newer is None or newer == self.epoch else f"{self.epoch} < {newer}"
        return LeaseLost(f"study {self._study!r}: lost lease epoch {epochs}: {why}")

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
        began = _clock()
        newest = read_owner(self._store, self._study)
        if newest is not None and newest.token != self.token and newest.epoch >= self.epoch:
            self.lose(f"process {newest.pid} on {newest.host} {_TOOK_OVER}", newest.epoch)
            return
        self._owner = replace(self._owner, counter=self._owner.counter + 1)
        self._write()
        self._renewed = began

    def _write(self) -> None:
        self._store.put(layout.lease(self._study, self.epoch), _to_bytes(self._owner))


def newest_epoch(store: Store, study: str) -> int:
    """The fencing epoch of the newest owner, released or not; 0 when nobody ever owned it."""
    leases = store.list(layout.leases(study))
    return max((layout.parse_lease(entry.key) or 0 for entry in leases), default=0)


def read_owner(store: Store, study: str) -> Owner | None:
    """The newest lease of a study, released or not; None when nobody ever owned it."""
    epoch = newest_epoch(store, study)
    if epoch == 0:
        return None
    try:
        return _read(store, study, epoch)
    except Missing:  # deleted by hand, just now
        return None


def _read(store: Store, study: str, epoch: int) -> Owner:
    key = layout.lease(study, epoch)
    content = store.get_within(key, _LARGEST_BYTES)
    try:
        said = json.loads(content)
        check_format(said.pop("format"), _FORMAT, f"{store.uri}/{key}")
        return Owner(**said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"{store.uri}/{key} is no lease: {error}; delete it when nobody runs the study"
        ) from error


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


def _claim(store: Store, study: str, epoch: int) -> Owner | None:
    """Take this fencing epoch; None when somebody else took it."""
    owner = Owner(
        epoch=epoch,
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
    segments = [layout.parse_segment(entry.key) for entry in store.list(layout.journal(study))]
    written = (at.epoch for at in segments if at is not None)
    return 1 + max(newest_epoch(store, study), *written, 0)


def _to_bytes(owner: Owner) -> bytes:
    return json.dumps({"format": _FORMAT, **asdict(owner)}).encode()


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where it has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

"""One collector of garbage in a store at a time, and never beside a study.

Why nothing goes that a study needs, also one that begins just now: each side first says that it is
there, and looks for the other then. A study takes its lease, then looks for a collector
(`wait_until_free`), and only then relies on a blob that it finds. A collector takes a lease of its
own, then looks for studies with an owner (`alone`), and only then asks what is referred to. Leases
are objects of the store, so who comes second sees who came first: the study waits, the collector
is refused. This asks for listings that show every object that was put, as S3 and folders give them.

Nobody is taken for dead by guessing. The owner of a study that is silent, but not known to be
gone, is followed by the collector: should it wake, it finds its lease lost and stops. A collector
that is silent is followed by the study that waits for it, and looks into the store before its
next delete when it wakes. What is left is a collector that is stopped after that look and before
the one delete that follows it: a study then hears that a blob is missing, and the same command
puts it there again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

from orchestrator.errors import RequestError
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease, Owner, StudyIsOwned, read_owner
from orchestrator.storage.removal import still_held
from orchestrator.storage.uri import Entry, Store

_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 900.0
_AT_ONCE = 16


@dataclass(frozen=True)
class Alone:
    """What a collector knows while no study has an owner."""

    store: Store
    lease: Lease
    epochs: Mapping[str, int]
    """The fencing epoch of each study's newest owner."""

    def confirm(self) -> None:
        """To be called before each delete. Raises LeaseLost, StorageError."""
        still_held(self.lease)

    @property
    def now(self) -> float:
        """A moment ago by the store's clock, in unix seconds."""
        entries = self.store.list(layout.leases(layout.COLLECTOR))
        own = layout.lease(layout.COLLECTOR, self.lease.epoch)
        return next(entry.modified for entry in entries if entry.key == own)


@contextmanager
def alone(store: Store) -> Iterator[Alone]:
    """Keep studies from beginning or going on; refuse where one has an owner.

    Raises StudyIsOwned, RequestError while another collector is at work, StorageError.
    """
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(Lease.acquire(store, layout.COLLECTOR))
        except StudyIsOwned as owned:
            raise RequestError(_at_work(store, owned)) from None
        epochs = newest_epochs(store.list(layout.STUDIES))
        _follow(store, owners(store, epochs), stack)
        yield Alone(store, lease, epochs)


def wait_until_free(
    store: Store, tell: Callable[[str], object], patience_seconds: float = _PATIENCE_SECONDS
) -> None:
    """Return once no collector is at work; for who has just taken the lease of a study.

    `tell` hears once whom it waits for. Raises RequestError when it takes too long, StorageError.
    """
    deadline, told = time.monotonic() + patience_seconds, False
    while (owner := read_owner(store, layout.COLLECTOR)) is not None and not owner.released:
        try:
            Lease.acquire(store, layout.COLLECTOR).release()  # that one can do no more harm
        except StudyIsOwned as owned:
            if time.monotonic() > deadline:
                raise RequestError(_at_work(store, owned)) from None
            if not told:
                tell(f"waiting for `orchestrator gc` (process {owned.pid} on {owned.host})")
            told = True
            time.sleep(_POLL_SECONDS)


def newest_epochs(entries: Iterable[Entry]) -> dict[str, int]:
    """The fencing epoch of the newest owner of each study in a listing; 0 where nobody was."""
    epochs: dict[str, int] = {}
    for entry in entries:
        if (study := layout.study_of(entry.key)) is not None:
            epochs[study] = max(epochs.get(study, 0), layout.parse_lease(entry.key) or 0)
    return epochs


def owners(store: Store, studies: Iterable[str]) -> dict[str, Owner]:
    """Those who may still run these studies: they let go of none, and are not known to be gone."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda study: (study, read_owner(store, study)), studies)
        return {study: owner for study, owner in found if owner is not None and not owner.gone}


def _follow(store: Store, studies: Iterable[str], stack: ExitStack) -> None:
    """Own the studies whose owners are silent. Raises StudyIsOwned for one that is not."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = [pool.submit(Lease.acquire, store, study) for study in studies]
    for answer in asked:
        if answer.exception() is None:
            stack.enter_context(answer.result())
    for answer in asked:
        answer.result()


def _at_work(store: Store, owned: StudyIsOwned) -> str:
    since = datetime.fromtimestamp(owned.since).isoformat(sep=" ", timespec="seconds")
    return (
        f"{store.uri}: `orchestrator gc` is at work there, as process {owned.pid} on {owned.host},"
        f" since {since}; give the same command again when it has ended"
    )

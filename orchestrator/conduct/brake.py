"""What makes a study stop before it is done: a request, a signal, a spent budget, lost gangs."""

import json
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from orchestrator.conduct.leaving import leave
from orchestrator.errors import OrchestratorError, Stopped, StorageError
from orchestrator.storage import layout
from orchestrator.storage.formats import WrongFormat, check_format
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Damaged, Store
from orchestrator.study.budget import Reached

POLL_SECONDS = 1.0
FORMAT = 1
"""Of requests."""
_LARGEST_BYTES = 64 * 1024
_LOG = logging.getLogger(__name__)


class Brake:
    """Says whether the study is to drain, and why. A context manager: it watches while entered."""

    def __init__(
        self, store: Store, study: str, lease: Lease, *, tell: Callable[[str], object] = str
    ) -> None:
        """`tell` hears once that the study is stopping, and why.

        A second signal ends the process, and what it has started, on the spot (`at_once`).
        """
        self._store, self._study, self._lease, self._tell = store, study, lease, tell
        self._checks: list[Callable[[], None]] = [lease.check]
        self._limits: list[Callable[[], Reached | None]] = []
        self._reached: Reached | None = None
        self._error: OrchestratorError | None = None
        self._why: str | None = None
        self._ended = threading.Event()
        self._old: list[tuple[signal.Signals, Any]] = []
        self._signals = 0
        self._last_words: list[Callable[[], object]] = []

    @property
    def why(self) -> str | None:
        """The reason to stop; None while there is none."""
        return self._why

    @property
    def reached(self) -> Reached | None:
        """The cap of the budget that is the reason to stop, if one is."""
        return self._reached

    def __call__(self) -> bool:
        """Whether the study is to drain."""
        return self._why is not None

    def watch(self, check: Callable[[], None]) -> None:
        """Also stop once `check` raises an `OrchestratorError`."""
        self._checks.append(check)

    def limit(self, check: Callable[[], Reached | None]) -> None:
        """Also stop once `check` names a cap that is reached."""
        self._limits.append(check)

    def at_once(self, *last_words: Callable[[], object]) -> None:
        """Call these when a second signal ends the process; those that are added later go first.

        They have a few seconds in all.
        """
        self._last_words = [*last_words, *self._last_words]

    def spend(self, reached: Reached) -> None:
        """Stop because a cap is reached; a reason that was there before stays."""
        if self._why is None:
            self._reached, self._why = reached, reached.why

    def raise_if_broken(self) -> None:
        """Raise what ended the study, unless it was asked to stop."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Brake":
        for key, epoch in _requests(self._store, self._study):
            if epoch < self._lease.epoch:
                self._store.delete(key)  # it spoke to an earlier owner of the study
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._old.append((name, signal.signal(name, self._on_signal)))
        threading.Thread(target=self._poll, name="brake", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for name, handler in self._old:
            signal.signal(name, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._signals += 1
        if self._signals == 1:
            self._why = self._why or f"{name} was received"
        elif self._signals == 2:
            self._why = f"{name} was received while stopping"
            leave(self._last_words, Stopped.exit_code)

    def _poll(self) -> None:
        told = False
        while not self._ended.wait(POLL_SECONDS):
            if self._why is not None and not told:
                told = True
                self._tell(f"stopping ({self._why}); what is checkpointed stays")
            try:
                for check in self._checks:
                    check()
            except OrchestratorError as error:
                self._error, self._why = error, str(error)
                return
            for found in filter(None, (check() for check in self._limits)):
                self.spend(found)
            try:
                for key, epoch in _requests(self._store, self._study):
                    if epoch <= self._lease.epoch:  # else it is for whoever has taken over
                        self._take(key)
            except StorageError:
                continue  # the store is away: ask again

    def _take(self, key: str) -> None:
        """Heed a request, once; one that cannot be understood is named and put away."""
        try:
            by = _asked_by(self._store, key)
        except (Damaged, WrongFormat, ValueError, LookupError, TypeError, RecursionError) as error:
            _LOG.warning("the request %s is not heeded: %s", key, error)
        else:
            self._why = self._why or f"asked to stop by {by}"
        self._store.delete(key)


def request_stop(store: Store, study: str, by: str, *, epoch: int) -> None:
    """Ask the owner of `study` under the fencing `epoch` to drain it; it looks every second."""
    request = {"format": FORMAT, "request": "stop", "by": by, "time": time.time()}
    key = layout.control(study, epoch, f"stop-{secrets.token_hex(4)}")
    store.put(key, json.dumps(request).encode())


def _asked_by(store: Store, key: str) -> str:
    said = json.loads(store.get_within(key, _LARGEST_BYTES))
    check_format(said["format"], FORMAT, f"{store.uri}/{key}")
    if said["request"] != "stop":
        raise ValueError(f"it asks for {said['request']!r:.40}, and only stop is known")
    return str(said["by"])[:200]


def _requests(store: Store, study: str) -> list[tuple[str, int]]:
    """The keys of all requests, and the fencing epochs that they speak to."""
    keys = [entry.key for entry in store.list(layout.controls(study))]
    return [(key, layout.parse_control(key) or 0) for key in keys]

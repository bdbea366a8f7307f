"""What makes a study stop before it is done: a request, a signal, a spent budget, lost gangs."""

import json
import secrets
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from orchestrator.errors import OrchestratorError, StorageError
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.study.budget import Reached

POLL_SECONDS = 1.0


class Brake:
    """Says whether the study is to drain, and why. A context manager: it watches while entered."""

    def __init__(
        self, store: Store, study: str, lease: Lease, *, tell: Callable[[str], object] = str
    ) -> None:
        """`tell` hears once that the study is stopping, and why."""
        self._store, self._study, self._lease, self._tell = store, study, lease, tell
        self._checks: list[Callable[[], None]] = [lease.check]
        self._limits: list[Callable[[], Reached | None]] = []
        self._reached: Reached | None = None
        self._error: OrchestratorError | None = None
        self._why: str | None = None
        self._ended = threading.Event()
        self._old: list[tuple[signal.Signals, Any]] = []

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

    def spend(self, reached: Reached) -> None:
        """Stop because a cap is reached; a reason that was there before stays."""
        if self._why is None:
            self._reached, self._why = reached, reached.why

    def raise_if_broken(self) -> None:
        """Raise what ended the study, unless it was asked to stop."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Brake":
        for request in _requests(self._store, self._study):
            self._store.delete(request)  # it spoke to an earlier owner of the study
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
        if self._why is not None:
            raise KeyboardInterrupt
        self._why = f"{signal.Signals(number).name} was received"

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
                requests = _requests(self._store, self._study)
                for key in requests:
                    asked = json.loads(self._store.get(key))
                    self._store.delete(key)
                    self._why = self._why or f"asked to stop by {asked['by']}"
            except (StorageError, ValueError):
                continue  # the store is away: ask again


def request_stop(store: Store, study: str, by: str) -> None:
    """Ask the owner of `study` to drain it; it looks every second."""
    request = {"format": 1, "request": "stop", "by": by, "time": time.time()}
    key = layout.control(study, f"stop-{secrets.token_hex(4)}")
    store.put(key, json.dumps(request).encode())


def _requests(store: Store, study: str) -> list[str]:
    return [entry.key for entry in store.list(layout.controls(study))]

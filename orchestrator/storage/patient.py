"""A store that is away for a while costs time and nothing else: calls to it are repeated."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from orchestrator.storage.uri import Entry, Store, Unreachable

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class PatientStore(Store):
    """`inner`, but a call that finds it away is made again for up to `seconds`.

    For processes that have work to lose. Where a person waits for an answer, use the store as it
    is. What is not about being away (a refusal, a missing or damaged object) is raised at once.
    """

    inner: Store
    seconds: float

    @property
    def settle_seconds(self) -> float:  # type: ignore[override]  # a plain attribute elsewhere
        return self.inner.settle_seconds

    @property
    def uri(self) -> str:
        return self.inner.uri

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        self._patiently(lambda: self.inner.put(key, data, if_absent=if_absent))

    def put_known(
        self, key: str, data: bytes | Path, sha256: str, *, if_absent: bool = False
    ) -> None:
        self._patiently(lambda: self.inner.put_known(key, data, sha256, if_absent=if_absent))

    def put_hashing(self, key: str, data: bytes) -> str:
        return self._patiently(lambda: self.inner.put_hashing(key, data))

    def chunks(self, key: str) -> Iterator[bytes]:
        return self._pieces(lambda: self.inner.chunks(key))

    def verified(self, key: str, sha256: str) -> Iterator[bytes]:
        return self._pieces(lambda: self.inner.verified(key, sha256))

    def _pieces(self, read: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
        """After a pause reading begins anew and passes over what was given already."""
        given, waited = 0, _Wait(self.seconds)
        while True:
            skip = given
            try:
                for piece in read():
                    fresh = piece[skip:]
                    skip -= len(piece) - len(fresh)
                    given += len(fresh)
                    if fresh:
                        yield fresh
                return
            except Unreachable as error:
                waited.after(error)

    def get(self, key: str) -> bytes:
        return self._patiently(lambda: self.inner.get(key))

    def list(self, prefix: str = "") -> "list[Entry]":
        return self._patiently(lambda: self.inner.list(prefix))

    def size(self, key: str) -> int | None:
        return self._patiently(lambda: self.inner.size(key))

    def delete(self, key: str) -> None:
        self._patiently(lambda: self.inner.delete(key))

    def sub(self, prefix: str) -> "PatientStore":
        return replace(self, inner=self.inner.sub(prefix))

    def local_path(self, key: str) -> Path | None:
        return self.inner.local_path(key)

    def _patiently(self, call: Callable[[], T]) -> T:
        waited = _Wait(self.seconds)
        while True:
            try:
                return call()
            except Unreachable as error:
                waited.after(error)


class _Wait:
    """One call's waiting: growing pauses, until its time is up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._pause = _FIRST_PAUSE_SECONDS

    def after(self, error: Unreachable) -> None:
        """Pause; raises Unreachable, with how long it lasted, when the time is up."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
            _LOG.warning("waiting up to %.0f s for the storage: %s", self._seconds, error)
        away = now - self._began
        if away >= self._seconds:
            raise Unreachable(f"{error} (it stayed away for {away:.0f} s)") from error
        time.sleep(min(self._pause, self._seconds - away) * random.uniform(0.5, 1.0))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

"""A store in memory, for tests that make thousands of calls; it can break at any delete."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.storage.uri import AlreadyThere, Entry, Missing, Store


class Killed(BaseException):
    """The process ended here."""


@dataclass
class MemoryStore(Store):
    """Keys to bytes. `clock` stamps what is put; delete number `breaks_at` (from 0) never is."""

    clock: float = 0.0
    breaks_at: int | None = None
    pause_seconds: float = 0.0
    """Each call takes up to this long, so that threads meet at any place."""
    deleted: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    stamps: dict[str, float] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def _pause(self) -> None:
        if self.pause_seconds:
            time.sleep(random.random() * self.pause_seconds)

    @property
    def uri(self) -> str:
        return "memory://"

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        self._pause()
        with self.lock:
            if if_absent and key in self.objects:
                raise AlreadyThere(key)
            self.objects[key] = data if isinstance(data, bytes) else data.read_bytes()
            self.stamps[key] = self.clock

    def chunks(self, key: str) -> Iterator[bytes]:
        self._pause()
        found = self.objects.get(key)
        if found is None:
            raise Missing(key)
        yield found

    def list(self, prefix: str = "") -> "list[Entry]":
        self._pause()
        below = f"{prefix}/" if prefix else ""
        with self.lock:
            found = sorted(self.objects.items())
        return [
            Entry(key, len(data), self.stamps[key]) for key, data in found if key.startswith(below)
        ]

    def size(self, key: str) -> int | None:
        found = self.objects.get(key)
        return None if found is None else len(found)

    def delete(self, key: str) -> None:
        self._pause()
        if self.breaks_at == len(self.deleted):
            raise Killed
        self.deleted.append(key)
        self.objects.pop(key, None)

    def sub(self, prefix: str) -> Store:
        raise NotImplementedError

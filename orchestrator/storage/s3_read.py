"""Reading an object of S3 in ranges, several at a time, so that one connection is not the limit.

What breaks off is taken up where it did, range by range. Memory is bounded by the ranges that are
read ahead, whatever the object's size.
"""

import random
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.storage.s3_errors import code_of

RANGE_BYTES = 8 * 1024 * 1024
READERS = 8
_AHEAD = READERS + 2
"""Ranges that are read, or wait to be given: one that is slow does not hold up all others."""
_PIECE_BYTES = 4 * 1024 * 1024
_EMPTY = ("InvalidRange", "416")
_CHANGED = ("PreconditionFailed", "412")

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """One reading of one object, from the request that finds it to its last byte."""

    client: Any
    where: Mapping[str, str]
    shown: str
    attempts: int
    """How often the body of one range may break off."""
    range_bytes: int = RANGE_BYTES
    _stopping: threading.Event = field(default_factory=threading.Event)

    def first(self) -> Answer:
        """The answer to the first request: what is known of the object, and its first range."""
        try:
            return self._ask(0, self.range_bytes)
        except self.client.exceptions.ClientError as error:
            if code_of(error) not in _EMPTY:
                raise
        answer: Answer = self.client.get_object(**self.where)
        return answer

    def pieces(self, first: Answer) -> Iterator[bytes]:
        """The whole content in order; all of it is of the object that `first` found.

        Raises what botocore raises, and StorageError when the object was replaced meanwhile.
        """
        given = int(first["ContentLength"])
        size = int(str(first.get("ContentRange", given)).rpartition("/")[2])
        if size <= given:  # all of it; a server that knows no ranges gives it, too
            yield from self._span(0, size, first)
            return
        starts = iter(range(given, size, self.range_bytes))
        readers = min(READERS, 1 + (size - given) // self.range_bytes)
        with ThreadPoolExecutor(readers, thread_name_prefix="s3-read") as pool:

            def start(offset: int, answer: Answer) -> "Future[list[bytes]]":
                stop = min(offset + self.range_bytes, size) if offset else given
                return pool.submit(self._whole_span, offset, stop, answer)

            waiting = deque([start(0, first)])
            waiting.extend(start(offset, _known(first)) for offset in islice(starts, _AHEAD - 1))
            try:
                while waiting:
                    found = waiting.popleft().result()
                    waiting.extend(start(offset, _known(first)) for offset in islice(starts, 1))
                    yield from found
            finally:
                self._stopping.set()
                for future in waiting:
                    future.cancel()

    def _whole_span(self, start: int, stop: int, answer: Answer) -> list[bytes]:
        return list(self._span(start, stop, answer))

    def _span(self, start: int, stop: int, answer: Answer) -> Iterator[bytes]:
        """The bytes from `start` to `stop`; `answer` has them, or only says which object it is."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        offset, failures, etag = start, 0, answer["ETag"]
        while offset < stop and not self._stopping.is_set():
            if "Body" not in answer:
                answer = self._ask(offset, stop, etag)
            try:
                while piece := answer["Body"].read(min(_PIECE_BYTES, stop - offset)):
                    offset += len(piece)
                    yield piece
                    if self._stopping.is_set():
                        return
                if offset < stop:
                    raise IncompleteReadError(actual_bytes=offset, expected_bytes=stop)
            except (HTTPClientError, IncompleteReadError):
                failures += 1
                if failures >= self.attempts:
                    raise
                self._stopping.wait(random.random() * min(2**failures, 8))
            answer = _known(answer)

    def _ask(self, start: int, stop: int, etag: str | None = None) -> Answer:
        """Ask for the bytes from `start` to `stop`, of the object of this `etag` only."""
        same = {} if etag is None else {"IfMatch": etag}
        try:
            answer: Answer = self.client.get_object(
                **self.where, Range=f"bytes={start}-{stop - 1}", **same
            )
        except self.client.exceptions.ClientError as error:
            if code_of(error) in _CHANGED:
                raise StorageError(
                    f"{self.shown} was replaced while it was read: read it again"
                ) from error
            raise
        if start and not str(answer.get("ContentRange")).startswith(f"bytes {start}-"):
            answer["Body"].close()
            raise StorageError(
                f"{self.shown}: asked for its bytes from {start} on, the server gave others: it"
                " does not know ranges, or a proxy stands between"
            )
        return answer


def _known(answer: Answer) -> Answer:
    """Which object an answer was about, without its body."""
    return {"ETag": answer["ETag"]}

"""Segments of a journal: their bytes, and which of them count.

A segment is a header line and one line per event; it is written once, as a whole. The first
segment of a fencing epoch begins with a `takeover` event that names, relative to the study's
folder, the segments and manifests of earlier epochs that its writer accepts. Readers believe
the newest takeover: what it names, then the segments of its own epoch. Whatever else an owner
of an earlier epoch has written, or still writes, is never seen.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.storage import layout
from orchestrator.storage.checkpoints import Accepted
from orchestrator.storage.formats import check_format
from orchestrator.storage.layout import SegmentKey
from orchestrator.storage.uri import Damaged, Missing, Store
from orchestrator.tracking.events import Event, from_line

FORMAT = 1
"""Of segments. Newer ones are refused, older ones are read."""
LARGEST_BYTES = 64 * 1024 * 1024
"""Of a segment that is read; what is written has less, unless one event alone has more."""


@dataclass(frozen=True)
class Segment:
    """A segment as it was read."""

    at: SegmentKey
    token: str
    """Of the lease under which it was written."""
    first: int
    """How many events its writer had flushed before."""
    events: tuple[Event, ...]


@dataclass(frozen=True)
class View:
    """What counts in a study's journal."""

    epoch: int
    """Of the newest takeover; 0 when there is no journal."""
    token: str
    """Of the lease under which it was written."""
    segments: tuple[SegmentKey, ...]
    events: tuple[Event, ...]
    accepted: Accepted
    flushed: int = 0
    """How many events the newest epoch's writer has brought here."""


def to_bytes(lines: Sequence[str], *, token: str, first: int) -> bytes:
    """A segment of the events whose texts are `lines`."""
    body = "".join(f"{line}\n" for line in lines).encode()
    header = {
        "format": FORMAT,
        "token": token,
        "first": first,
        "count": len(lines),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + body


def from_bytes(content: bytes, at: SegmentKey, shown: str) -> Segment:
    """Read a segment. Raises Damaged, or StorageError when it is of a newer format."""
    head, _, body = content.partition(b"\n")
    try:
        header = json.loads(head)
        check_format(header["format"], FORMAT, shown)
        if hashlib.sha256(body).hexdigest() != header["sha256"]:
            raise ValueError("its events are not those that were written")
        events = tuple(from_line(line) for line in body.splitlines())
        return Segment(at, header["token"], header["first"], events)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(
            f"{shown} is damaged: {error}. Bring it back from the bucket's versions or a copy; or"
            " delete it and resume: checkpoints make up for the epochs that it told of"
        ) from error


class JournalReader:
    """Any number of readers, without a lease; each segment is read from the store once."""

    def __init__(self, store: Store, study: str) -> None:
        self._store = store
        self._study = study
        self._known: dict[SegmentKey, Segment] = {}

    def read(self) -> list[Event]:
        """All events that the newest takeover accepts, in order; [] when there is no journal.

        A segment that should be there and is not shows as an event of kind `gap`.
        Raises StorageError.
        """
        return list(self.view().events)

    def view(self) -> View:
        """As `read`, with what it is made of."""
        keys = self.keys()
        for epoch in sorted({at.epoch for at in keys}, reverse=True):
            first = self._segment(SegmentKey(epoch, 0)) if SegmentKey(epoch, 0) in keys else None
            if first is not None and first.events and first.events[0]["kind"] == "takeover":
                return self._view_of(first, [at for at in keys if at.epoch == epoch])
        return View(0, "", (), (), Accepted(0))

    def keys(self) -> list[SegmentKey]:
        """All segments that there are, whether they count or not, in order."""
        found = self._store.list(layout.journal(self._study))
        return sorted(at for entry in found if (at := layout.parse_segment(entry.key)) is not None)

    def _view_of(self, first: Segment, own: list[SegmentKey]) -> View:
        takeover = first.events[0]
        named = [_from_name(name) for name in takeover["segments"]]
        last = max((at.number for at in own), default=0)
        wanted = named + [SegmentKey(first.at.epoch, number) for number in range(last + 1)]
        segments: list[SegmentKey] = []
        events: list[Event] = []
        flushed = 0
        for at in wanted:
            segment = self._segment(at)
            if segment is None:
                events.append(_gap(at, takeover["time"]))
            elif at.epoch == first.at.epoch and segment.token != first.token:
                continue  # of a twin that a server let in at the same epoch
            else:
                segments.append(at)
                events.extend(segment.events)
                if at.epoch == first.at.epoch:
                    flushed = segment.first + len(segment.events)
        folder = layout.study(self._study)
        accepted = frozenset(f"{folder}/{name}" for name in takeover["manifests"])
        return View(
            first.at.epoch,
            first.token,
            tuple(segments),
            tuple(events),
            Accepted(first.at.epoch, accepted),
            flushed,
        )

    def _segment(self, at: SegmentKey) -> Segment | None:
        if at not in self._known:
            key = layout.segment(self._study, *at)
            try:
                content = self._store.get_within(key, LARGEST_BYTES)
            except Missing:
                return None
            self._known[at] = from_bytes(content, at, f"{self._store.uri}/{key}")
        return self._known[at]


def read_events(store: Store, study: str) -> list[Event]:
    """All events of a study, for a terminal that is not its owner. Raises StorageError."""
    return JournalReader(store, study).read()


def name_of(at: SegmentKey) -> str:
    """How a takeover names a segment."""
    return layout.segment("-", *at).removeprefix(f"{layout.study('-')}/")


def _from_name(name: str) -> SegmentKey:
    at = layout.parse_segment(f"{layout.study('-')}/{name}")
    if at is None:
        raise Damaged(f"a takeover names {name!r}, which is no segment of a journal")
    return at


def _gap(at: SegmentKey, time: float) -> Event:
    return {"kind": "gap", "time": time, "segment": name_of(at)}

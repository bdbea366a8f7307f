"""Where trials and gangs meet: one actor for each study, holding state and never queues.

A *lease* is one assignment and what came of it. It stays until its owner acknowledges it, so a
reader or a gang that dies takes nothing with it. Each gang registers when its workers start, which
numbers its *attempt*; calls of an older attempt are answered `STALE`. Reports are numbered by
epoch, kept until the lease is acknowledged, and may be read twice.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator import clock
from orchestrator.study.failures import FailureKind, tries_again

Answer = Literal["go", "stop", "stale"]
Json = dict[str, Any]

POLL_SECONDS = 5.0  # a waiting call returns at least this often, so that nobody waits for the dead
ORPHAN_SECONDS = 90.0  # a lease nobody has read for so long is stopped: its trial is gone


@dataclass
class Lease:
    """One assignment, from its submission to its acknowledgement."""

    name: str
    assignment: Json
    read_at: float
    gang: int | None = None
    attempts: int = 0
    reports: list[Json] = field(default_factory=list)
    proceed: int = 0  # reports up to this number were decided upon
    outcome: Json | None = None
    stop_asked: bool = False
    failures: dict[str, int] = field(default_factory=dict)
    """How often it failed, by kind; `assignment["retries"]` says how often it may."""
    complained: bool = False
    """Whether the attempt under way has said why it failed."""
    excused: bool = False
    """Whether the attempt under way was told that its machine goes away."""
    last_error: str = ""
    last_kind: FailureKind = "worker"

    def fail(self, kind: FailureKind, error: str) -> None:
        """Count a failure; an outcome where it is not to be tried again."""
        earlier = self.failures.get(kind, 0)
        self.failures[kind] = earlier + 1
        self.complained, self.last_kind, self.last_error = True, kind, error
        if not tries_again(kind, earlier, self.assignment.get("retries", {})):
            after = f", attempt {self.attempts}" if self.attempts > 1 else ""
            text = f"{kind.replace('_', ' ')}{after}: {error}"
            self.outcome = {"kind": "failed", "failure": kind, "error": text}


@dataclass
class Seat:
    """What is known of one gang: its attempt, its workers and the lease it works on."""

    attempt: int = 0
    workers: list[Json] = field(default_factory=list)
    lease: str | None = None
    places: str = ""
    """The id of its placement group."""


class Mailbox:
    """The state behind the actor; every method is a coroutine of the actor's one event loop."""

    def __init__(self, poll_seconds: float = POLL_SECONDS) -> None:
        self._poll_seconds = poll_seconds
        self._leases: dict[str, Lease] = {}
        self._seats: dict[int, Seat] = {}
        self._events: list[Json] = []
        self._closing = False
        self._changed = asyncio.Condition()

    # -- the gang's side ------------------------------------------------------------------------

    async def register(self, gang: int, workers: list[Json], places: str) -> int:
        """A gang's workers have started, in the placement group `places` (its id); returns the
        number of this attempt."""
        seat = self._seats.setdefault(gang, Seat())
        if seat.attempt:
            self._note("gang_lost", gang=gang, attempt=seat.attempt, why=self._why_lost(seat))
        seat.attempt, seat.workers, seat.places = seat.attempt + 1, workers, places
        self._note("gang_opened", gang=gang, attempt=seat.attempt, workers=workers)
        lease = self._leases.get(seat.lease or "")
        if lease and lease.outcome is None and not (lease.complained or lease.excused):
            self._fail(lease, "worker", "a worker process died")
        if lease is not None and lease.outcome is not None:
            seat.lease = None
        await self._touch()
        return seat.attempt

    async def current(self, gang: int, attempt: int) -> Json | Literal["stale", "close"] | None:
        """The gang's unfinished lease, or the oldest waiting one; None means ask again."""
        seat = self._seats[gang]
        await self._until(lambda: attempt != seat.attempt or self._has_work(seat))
        if attempt != seat.attempt:
            return "stale"
        lease = self._leases.get(seat.lease or "")
        if lease is None or lease.outcome is not None:
            lease = self._oldest_waiting()
            if self._closing or lease is None:
                return "close" if self._closing else None
            seat.lease, lease.gang = lease.name, gang
        lease.attempts, lease.complained, lease.excused = lease.attempts + 1, False, False
        self._note("started", lease=lease.name, gang=gang, attempt=lease.attempts)
        return {
            "lease": lease.name,
            "assignment": lease.assignment,
            "reported": len(lease.reports),
            "attempt": lease.attempts,
        }

    async def report(self, call: Json, number: int, value: Json, wait: bool) -> Answer:
        """Take report `number` (from 0). With `wait`, answer once it has been decided upon."""
        lease = self._held(call)
        if lease is None:
            return "stale"
        if number == len(lease.reports):
            lease.reports.append(value)
            await self._touch()
        while wait and lease.proceed <= number and not lease.stop_asked:
            await self._until(lambda: lease.proceed > number or lease.stop_asked)
            if self._held(call) is None:
                return "stale"
            self._stop_orphans()
        return "stop" if lease.stop_asked else "go"

    async def finish(self, call: Json, outcome: Json) -> None:
        """The gang is done with its lease; the outcome waits for the trial."""
        lease = self._held(call)
        if lease is not None:
            lease.outcome = outcome
            self._seats[call["gang"]].lease = None
            await self._touch()

    async def complain(self, call: Json, error: str, kind: FailureKind) -> None:
        """An attempt broke: it is tried again or given up, as its assignment's `retries` say.

        Of several workers the first one counts, unless it only says that another one was gone.
        """
        lease = self._held(call)
        if lease is None or lease.outcome is not None or (lease.excused and kind == "worker"):
            return
        if lease.complained:
            if lease.last_kind != "worker" or kind == "worker":
                return
            lease.failures["worker"] -= 1
        self._fail(lease, kind, error)
        await self._touch()

    async def excuse(self, call: Json) -> None:
        """A node is leaving, as was announced: what comes of it is no failure of this attempt."""
        lease = self._held(call)
        if lease is not None:
            lease.excused = True
            self._note("preempted", lease=call["lease"], gang=call["gang"])

    async def remark(self, call: Json, kind: str, why: str) -> None:
        """Something about a lease that belongs into the study's record."""
        if self._held(call) is not None:
            self._note(kind, lease=call["lease"], why=why)

    async def asked_to_stop(self, call: Json) -> Answer:
        """Whether a lease is to be given back at the next boundary."""
        lease = self._held(call)
        if lease is None:
            return "stale"
        return "stop" if lease.stop_asked else "go"

    # -- the trial's side -----------------------------------------------------------------------

    async def submit(self, name: str, assignment: Json) -> None:
        """Ask for a gang; a name that is known already keeps its lease."""
        self._leases.setdefault(name, Lease(name, assignment, time.monotonic()))
        await self._touch()

    async def reopen(self, name: str) -> None:
        """The owner is (back) here: a lease that was stopped without its asking starts again."""
        lease = self._leases[name]
        lease.read_at = time.monotonic()
        if lease.outcome is not None and lease.outcome["kind"] == "stopped":
            self._leases[name] = Lease(name, lease.assignment, time.monotonic())
            await self._touch()

    async def read(
        self, name: str, number: int, seconds: float | None = None
    ) -> tuple[str, Json | None]:
        """("report", value) for report `number`, ("outcome", value), or ("wait", None)."""
        lease = self._leases[name]
        lease.read_at = time.monotonic()
        await self._until(lambda: len(lease.reports) > number or lease.outcome is not None, seconds)
        lease.read_at = time.monotonic()
        if len(lease.reports) > number:
            return "report", lease.reports[number]
        return ("outcome", lease.outcome) if lease.outcome is not None else ("wait", None)

    async def proceed(self, name: str, number: int) -> None:
        """Reports up to and including `number` were decided upon: the gang may go on."""
        lease = self._leases.get(name)
        if lease is not None:
            lease.proceed = max(lease.proceed, number + 1)
            await self._touch()

    async def stop(self, name: str) -> None:
        """Ask the gang to give this lease back at the next boundary."""
        lease = self._leases.get(name)
        if lease is not None:
            lease.stop_asked = True
            if lease.gang is None:
                lease.outcome = {"kind": "stopped"}
            await self._touch()

    async def acknowledge(self, name: str) -> None:
        """The owner has what it needs; the lease may go."""
        self._leases.pop(name, None)

    # -- the driver's side ----------------------------------------------------------------------

    async def events(self, number: int, seconds: float | None = None) -> list[Json]:
        """What happened to gangs and leases since event `number`; waits a while for the first."""
        self._stop_orphans()
        await self._until(lambda: len(self._events) > number, seconds)
        return self._events[number:]

    async def seats(self) -> dict[int, Json]:
        """Each gang's attempt, workers (node, pid by rank), lease and placement group."""
        return {gang: asdict(seat) for gang, seat in self._seats.items()}

    async def close(self) -> None:
        """Let every gang end: the idle ones now, the others at the next boundary."""
        self._closing = True
        for lease in self._leases.values():
            lease.stop_asked = True
        await self._touch()

    # -- inside ---------------------------------------------------------------------------------

    def _held(self, call: Json) -> Lease | None:
        seat = self._seats.get(call["gang"])
        if seat is None or seat.attempt != call["gang_attempt"] or seat.lease != call["lease"]:
            return None
        return self._leases.get(call["lease"])

    def _fail(self, lease: Lease, kind: FailureKind, error: str) -> None:
        lease.fail(kind, error)
        again = lease.outcome is None
        self._note("attempt_failed", lease=lease.name, failure=kind, error=error, again=again)

    def _has_work(self, seat: Seat) -> bool:
        held = self._leases.get(seat.lease or "")
        unfinished = held is not None and held.outcome is None
        return unfinished or self._closing or self._oldest_waiting() is not None

    def _oldest_waiting(self) -> Lease | None:
        waiting = (x for x in self._leases.values() if x.gang is None and x.outcome is None)
        return next(waiting, None)

    def _stop_orphans(self) -> None:
        """A trial whose process died reads no more: its gang is freed at the next boundary."""
        late = time.monotonic() - ORPHAN_SECONDS
        for lease in self._leases.values():
            if lease.outcome is None and lease.read_at < late and not lease.stop_asked:
                lease.stop_asked = True
                self._note("orphaned", lease=lease.name)
                if lease.gang is None:
                    lease.outcome = {"kind": "stopped"}

    def _why_lost(self, seat: Seat) -> str:
        lease = self._leases.get(seat.lease or "")
        if lease is None:
            return "a worker died while the gang was idle"
        return f"during {lease.name}: {lease.last_error or 'a worker process died'}"

    def _note(self, kind: str, **fields: Any) -> None:
        self._events.append({"kind": kind, "time": clock.now(), **fields})

    async def _touch(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, ready: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until `ready()`, at most `seconds` (the poll's)."""
        async with self._changed:
            with suppress(TimeoutError):
                waiting = self._changed.wait_for(ready)
                await asyncio.wait_for(waiting, seconds or self._poll_seconds)

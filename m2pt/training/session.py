"""Where a training runs and who listens: the loop knows nothing of either.

A session answers three questions: who am I among the workers, where did I leave off, and what
becomes of an epoch. `drive` is the only place that joins a training and a session.
"""

import json
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from m2pt.training.report import EpochReport
from m2pt.training.state import State, from_bytes, to_bytes
from m2pt.training.world import World as World
from m2pt.training.world import largest_over

Outcome = Literal["finished", "stopped"]


class Session(Protocol):
    """What a training needs to know of its surroundings."""

    @property
    def world(self) -> World:
        """This worker among all workers."""
        ...

    def latest(self) -> State | None:
        """The state to go on from; every rank must answer with the same epoch."""
        ...

    def report(self, report: EpochReport, capture: Callable[[], State]) -> bool:
        """Take note of an epoch; True asks to stop here.

        `capture` copies the state as it is now and talks to no other rank: call it on rank 0,
        or not at all. It is enough that one rank asks to stop.
        """
        ...


class Resumable(Protocol):
    """What `drive` needs of a training (`loop.Training` is one)."""

    def epochs(self) -> Generator[EpochReport, None, None]:
        """Train on from where it is, one report per epoch."""
        ...

    def capture(self) -> State:
        """A copy of what changed so far."""
        ...

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        ...


def drive(training: Resumable, session: Session) -> Outcome:
    """Resume, train, report; "stopped" where the session ended it before its last epoch.

    On several workers every rank calls this; a stop that one rank asks for stops all of them.
    """
    state = session.latest()
    _check_same_epoch(state, session.world)
    if state is not None:
        training.restore(state)
    # closing(): leaving early ends the generator here and now, not at some later collection.
    with closing(training.epochs()) as reports:
        for report in reports:
            stop = session.report(report, training.capture)
            if largest_over(session.world, int(stop)) and report.epoch < report.epochs:
                return "stopped"
    return "finished"


def _check_same_epoch(state: State | None, world: World) -> None:
    """Ranks that resume from different epochs would wait for each other for ever: say so first."""
    epoch = 0 if state is None else state.meta.get("epoch")
    if not isinstance(epoch, int):
        raise ValueError(f"state: meta 'epoch' must be a whole number, is {epoch!r}")
    newest, oldest = largest_over(world, epoch), -largest_over(world, -epoch)
    if newest != oldest:
        raise RuntimeError(
            f"session: ranks would resume from different epochs ({oldest} to {newest}); "
            "latest() must find the same state on every rank"
        )


@dataclass
class MemorySession:
    """Keeps everything in memory: for tests and notebooks."""

    world: World = field(default_factory=World)
    stop_after: int | None = None
    """Ask to stop once this many epochs are complete."""
    state: State | None = None
    reports: list[EpochReport] = field(default_factory=list)

    def latest(self) -> State | None:
        """The state of the last report, or the one given."""
        return self.state

    def report(self, report: EpochReport, capture: Callable[[], State]) -> bool:
        """Keep the report and the state."""
        self.reports.append(report)
        self.state = capture()
        return self.stop_after is not None and report.epoch >= self.stop_after


@dataclass(frozen=True)
class FolderSession:
    """Keeps one state per epoch, and the reports, in a folder that all ranks can read."""

    folder: Path
    world: World = field(default_factory=World)
    stop_after: int | None = None

    def latest(self) -> State | None:
        """The state of the highest epoch in the folder. ValueError where it is damaged."""
        paths = sorted(self.folder.glob("epoch-*.safetensors"))
        if not paths:
            return None
        try:
            return from_bytes(paths[-1].read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{paths[-1]}: {error}; delete it to resume one epoch earlier"
            ) from None

    def report(self, report: EpochReport, capture: Callable[[], State]) -> bool:
        """Write state and report on rank 0, whole or not at all."""
        if self.world.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            stem = f"epoch-{report.epoch:06d}"
            _write(self.folder / f"{stem}.json", json.dumps(asdict(report)).encode())
            _write(self.folder / f"{stem}.safetensors", to_bytes(capture()))
        return self.stop_after is not None and report.epoch >= self.stop_after


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

"""A trial that another attempt takes up again: what it sends, and whether it waits at a rung."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from m2pt.training.report import EpochReport
from m2pt.training.state import FORMAT, State
from m2pt.training.world import World
from orchestrator.errors import StorageError
from orchestrator.ray_backend.reporting import GangSession, StoppedHere
from orchestrator.ray_backend.worker import Gang
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.uri import Store


@dataclass
class Session(GangSession):
    """One that keeps what it sends, and is told to stop at the rungs `stop_at`."""

    stop_at: frozenset[int] = frozenset()
    sent: list[tuple[int, bool]] = field(default_factory=list)

    def _stop_asked(self) -> bool:
        return False

    def _node_is_leaving(self) -> bool:
        return False

    def _send(self, number: int, value: dict[str, Any], *, wait: bool) -> bool:
        assert value["epoch"] == number + 1
        self.sent.append((number + 1, wait))
        return wait and number + 1 in self.stop_at


def session(folder: Path, reported: int, *stop_at: int) -> Session:
    """An attempt at a trial of four epochs with a rung at the second."""
    checkpoints = TrialCheckpoints(Store.open(str(folder)), "s", "t", Accepted(1))
    gang = Gang(mailbox=None, number=0, world=World(), control=None)
    rungs = frozenset({2})
    return Session(gang, {}, checkpoints, reported, rungs, 1, {}, stop_at=frozenset(stop_at))


def train(one: Session, *epochs: int) -> list[bool]:
    """Report these epochs; the answers."""
    state = State({}, {"format": FORMAT})
    with one:
        return [one.report(EpochReport(epoch, 4, {}, {}, {}), lambda: state) for epoch in epochs]


def test_a_rung_is_waited_at_and_may_stop_the_trial(tmp_path: Path) -> None:
    one = session(tmp_path, 0, 2)
    assert one.latest() is None
    assert train(one, 1, 2) == [False, True]
    assert one.sent == [(1, False), (2, True)]


@pytest.mark.parametrize("reported", [1, 2])
def test_an_attempt_that_died_at_a_rung_is_followed_by_one_that_waits_there(
    tmp_path: Path, reported: int
) -> None:
    """Whether its report had arrived or not, and whether the trial may go on or not."""
    train(session(tmp_path, 0), 1, 2)
    stopped = session(tmp_path, reported, 2)
    with pytest.raises(StoppedHere):
        stopped.latest()
    assert stopped.sent == [(2, True)]
    going_on = session(tmp_path, reported)
    assert going_on.latest() is not None
    assert train(going_on, 3, 4) == [False, False]
    assert going_on.sent == [(2, True), (3, False), (4, False)]


def test_an_attempt_behind_or_beyond_a_rung_only_sends_what_is_missing(tmp_path: Path) -> None:
    train(session(tmp_path, 0), 1)
    before = session(tmp_path, 0)
    before.latest()
    assert before.sent == [(1, False)]
    train(before, 2, 3)
    beyond = session(tmp_path, 1)
    beyond.latest()
    assert beyond.sent == [(2, False), (3, False)]


class Held(FolderStore):
    """Takes no state until it may; then it refuses it if it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may, self.refuses = threading.Event(), False

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        assert self.may.wait(10)
        if self.refuses:
            raise StorageError("no room")
        super().put(key, data, if_absent=if_absent)


def held(folder: Path, every_epochs: int) -> tuple[Session, Held]:
    """An attempt without rungs, whose uploads are held up."""
    one, store = session(folder, 0), Held(folder)
    one.checkpoints = replace(one.checkpoints, store=store)
    one.rungs, one.every_epochs = frozenset(), every_epochs
    return one, store


def report(one: Session, epoch: int) -> bool:
    state = State({}, {"format": FORMAT})
    return one.report(EpochReport(epoch, 9, {}, {}, {}), lambda: state)


def test_training_goes_on_during_an_upload_and_reports_stay_in_order(tmp_path: Path) -> None:
    one, store = held(tmp_path, 3)
    with one:
        for epoch in (1, 2, 3, 4, 5):
            assert not report(one, epoch)
        assert one.sent == [(1, False), (2, False)]  # 3 is not complete yet
        assert one.checkpoints.latest() is None
        store.may.set()
        for epoch in (6, 7):
            report(one, epoch)
    assert [epoch for epoch, _ in one.sent] == [1, 2, 3, 4, 5, 6, 7]
    newest = one.checkpoints.latest()
    assert newest is not None
    assert newest.step == 6
    assert [value["epoch"] for value in newest.meta["epochs"]] == [1, 2, 3, 4, 5, 6]


def test_the_next_state_waits_for_the_one_on_its_way(tmp_path: Path) -> None:
    one, store = held(tmp_path, 1)
    with one:
        report(one, 1)
        threading.Timer(0.2, store.may.set).start()
        report(one, 2)
        assert one.sent[0] == (1, False)


@pytest.mark.parametrize("epochs", [(1,), (1, 2)])
def test_an_upload_that_failed_fails_the_trial(tmp_path: Path, epochs: tuple[int, ...]) -> None:
    """At the next boundary, or at the end."""
    one, store = held(tmp_path, 1)
    store.refuses = True
    store.may.set()

    def run() -> None:
        with one:
            for epoch in epochs:
                report(one, epoch)

    with pytest.raises(StorageError, match="no room"):
        run()
    assert one.sent == []


def test_a_trial_that_is_asked_to_stop_keeps_its_state_at_the_next_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = session(tmp_path, 0)
    one.rungs, one.every_epochs = frozenset(), 100
    with one:
        assert not report(one, 1)
        monkeypatch.setattr(one, "_stop_asked", lambda: True)
        report(one, 2)
    newest = one.checkpoints.latest()
    assert newest is not None
    assert newest.step == 2

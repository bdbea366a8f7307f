"""A trial that another attempt takes up again: what it sends, and whether it waits at a rung."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from m2pt.training.report import EpochReport
from m2pt.training.state import FORMAT, State
from m2pt.training.world import World
from orchestrator.ray_backend.worker import Gang, GangSession, StoppedHere
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.uri import Store


@dataclass
class Session(GangSession):
    """One that keeps what it sends, and is told to stop at the rungs `stop_at`."""

    stop_at: frozenset[int] = frozenset()
    sent: list[tuple[int, bool]] = field(default_factory=list)

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

"""Faults that cannot be had for real on every machine, injected where they would come in."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import clock
from orchestrator.storage.lease import Lease, StudyIsOwned
from orchestrator.storage.uri import Store
from orchestrator.study.budget import Meter
from orchestrator.tracking.journal import Journal, read_events

HOUR = 3600.0


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """By how many seconds somebody has set the wall clock; to be changed."""
    shift, real = [0.0], time.time
    clock._began.cache_clear()
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    yield shift
    clock._began.cache_clear()


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_clock_that_jumps_loses_no_lease_and_no_order(
    tmp_path: Path, jump: list[float], seconds: float
) -> None:
    store, meter = Store.open(str(tmp_path / "studies")), Meter()
    with (
        Lease.acquire(store, "s", heartbeat_seconds=0.05, expiry_seconds=0.4) as lease,
        Journal.open(store, "s", lease, spool=tmp_path / "spool") as journal,
    ):
        journal.subscribe(meter.observe, replay=True)
        journal.append({"kind": "first"})
        jump[0] = seconds
        journal.append({"kind": "second"})
        with pytest.raises(StudyIsOwned):
            Lease.acquire(store, "s", expiry_seconds=0.4)
        assert not lease.lost.is_set()
        assert 0 <= meter.spent(clock.now()).wall_clock_hours < 0.01
    times = [event["time"] for event in read_events(store, "s")]
    assert times == sorted(times)
    assert times[-1] - times[0] < 60


def test_a_full_disk_for_spools_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the spool opens is the kernel's full device: each write fails with ENOSPC."""
    real, spool = os.open, tmp_path / "spool"

    def full(path: str, *arguments: Any, **options: Any) -> int:
        if Path(path).parent == spool:
            return real("/dev/full", os.O_WRONLY)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", full)
    store = Store.open(str(tmp_path / "studies"))
    with (
        Lease.acquire(store, "s") as lease,
        Journal.open(store, "s", lease, spool=spool) as journal,
    ):
        journal.append({"kind": "first"})
        assert journal.flush(10)
    assert "No space left on device" in caplog.text
    assert [event["kind"] for event in read_events(store, "s")] == ["takeover", "first"]

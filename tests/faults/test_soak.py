"""Random faults for a while, every trial accounted for (see soak.py, also for longer ones)."""

from pathlib import Path

import pytest

from tests.faults.soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_trials_are_accounted_for_whatever_happens(tmp_path: Path) -> None:
    one = soak(tmp_path, trials=8, seconds=40, every=4, seed=3)
    assert sum(one.done.values()) >= 5
    assert len(one.done) >= 3

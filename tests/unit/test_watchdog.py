"""A trial that makes no step is ended, one that makes them is left alone."""

import subprocess
import sys
import time

import pytest

from m2pt.training.progress import beat
from orchestrator.ray_backend.watchdog import EXIT_CODE, watched

STUCK = """
import time
from orchestrator.ray_backend.watchdog import watched
with watched({seconds}, lambda error, kind: print(kind, error, flush=True)):
    {stuck}
"""


def test_a_hung_trial_says_so_and_leaves() -> None:
    said: list[str] = []
    left: list[int] = []
    with watched(0.1, lambda error, kind: said.append(f"{kind}: {error}"), leave=left.append):
        time.sleep(0.4)
    assert left == [EXIT_CODE]
    assert said[0].startswith("hang: hung: no step for ")


def test_a_slow_one_is_left_alone() -> None:
    left: list[int] = []
    with watched(0.3, lambda error, kind: None, leave=left.append):
        for _ in range(20):
            time.sleep(0.02)
            beat()
    with watched(None, lambda error, kind: None, leave=left.append):
        time.sleep(0.05)
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stuck", "code"),
    [
        ("time.sleep(60)", EXIT_CODE),
        # keeps the interpreter's lock: only what is written in C can end it
        ("import re; re.match('(a+)+b', 'a' * 60)", 1),
    ],
)
def test_its_process_ends_and_shows_where_it_stood(stuck: str, code: int) -> None:
    source = STUCK.format(seconds=1.0, stuck=stuck)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert "most recent call first" in done.stderr

"""kill -9 of the processes of a study that its driver stands over: trials and a gang's worker."""

import os
import signal
from pathlib import Path
from subprocess import Popen

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from tests.studies import (
    SEARCH,
    check_each_trial_ended_once,
    events,
    finish,
    select,
    start,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RELAY = "ray::relay"  # the title of a process in which Tune runs `ray_backend.trial.relay`
SHORT = ("concurrent_trials=1", "trials=2", "confirm=0", "epochs=40")


def relays(driver: "Popen[str]") -> list[psutil.Process]:
    """The processes of the study's trials."""
    family = psutil.Process(driver.pid).children(recursive=True)
    return [one for one in family if RELAY in " ".join(one.cmdline())]

"""Memory that a training process keeps between steps."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from m2pt.training.memory import keep_freed_memory, return_freed_memory
torch.set_num_threads(1)
{setting}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step = [torch.ones(1_000_000) for _ in range(40)]
        while step:
            step.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
kept = faults()
return_freed_memory()
print(kept, faults())
"""

GIVING_BACK = {
    # left alone, glibc learns from what is freed, and keeps some of it, sooner or later
    "MALLOC_MMAP_THRESHOLD_": str(1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**2),
}


def steps(setting: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(setting=setting)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **GIVING_BACK},
    )
    kept, returned = done.stdout.split()
    return int(kept), int(returned)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
def test_kept_memory_is_not_asked_for_again_until_it_is_returned() -> None:
    kept, returned = steps("assert keep_freed_memory()")
    given_back, _ = steps("")
    assert given_back > 100_000  # five times 160 MB in pages of 4 KiB
    assert kept < given_back / 20
    assert returned > 1000 + kept

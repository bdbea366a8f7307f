"""How a process begins, and that it ends as others do."""

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from orchestrator import startup

class Stays:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("gone")

before = gc.get_threshold()
startup.import_fast()
assert gc.get_threshold()[0] > before[0]
kept = Stays()
startup.all_imported()
assert gc.get_threshold() == before
assert gc.get_freeze_count()
print("end")
"""


def test_what_was_imported_is_let_go_of_at_the_end() -> None:
    end = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (end.stdout.split(), end.stderr, end.returncode) == (["end", "gone"], "", 0)


ENDS = """
import atexit, sys
from orchestrator import startup

class Stays:
    def __del__(self):
        print("taken apart")

def main():
    global kept
    kept = Stays()
    atexit.register(print, "due at the end")
    print("said")
    {last}

sys.exit(startup.run(main))
"""


@pytest.mark.parametrize(
    ("last", "code", "error", "out"),
    [
        ("return 7", 7, "", ["said", "due at the end"]),
        ("sys.exit(2)", 2, "", ["said", "due at the end", "taken apart"]),
        (
            "1 / 0",
            1,
            "ZeroDivisionError: division by zero",
            ["said", "due at the end", "taken apart"],
        ),
    ],
)
def test_a_process_ends_with_its_code_once_nothing_is_due(
    last: str, code: int, error: str, out: list[str]
) -> None:
    words = [sys.executable, "-c", ENDS.format(last=last)]
    end = subprocess.run(words, capture_output=True, text=True)
    assert (end.returncode, end.stdout.splitlines()) == (code, out)
    assert end.stderr.strip().endswith(error) if error else not end.stderr


def test_what_cannot_be_written_is_told_as_ever() -> None:
    words = [sys.executable, "-c", ENDS.format(last="return 7")]
    with subprocess.Popen(
        words,
        env={},  # no PYTHONUNBUFFERED
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"BrokenPipeError" in process.stderr.read()
        assert process.wait() == 120

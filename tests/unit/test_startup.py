"""How a process begins, and that it ends as others do."""

import subprocess
import sys

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

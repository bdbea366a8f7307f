"""The command line as a machine of another name would run it, or stopped at a bad moment.

python elsewhere.py [--host NAME] [--expiry SECONDS] [--stop-before TEXT] VERB ...
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from orchestrator import cli
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.lease import Lease
from orchestrator.tracking.runs import Runs


def main() -> int:
    """Make this process what the options say, then run the verb."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", help="the machine's name")
    parser.add_argument("--expiry", type=float, help="seconds after which an owner is given up")
    parser.add_argument("--stop-before", help="SIGSTOP before the segment with this text is put")
    options, words = parser.parse_known_args()
    if options.host is not None:
        platform.node = lambda: options.host
    if options.expiry is not None:
        acquire: Any = Lease.acquire
        acquire.__func__.__kwdefaults__["expiry_seconds"] = options.expiry
    if options.stop_before is not None:
        _stop_once_before(options.stop_before.encode())
    return cli.main(words)


def _stop_once_before(text: bytes) -> None:
    """All that can be asked whether this process may write has been asked by then.

    No call of MLflow is under way at that moment: it could not be taken back, and would keep the
    SQLite file locked.
    """
    put, stopped, tracking = FolderStore.put, list[str](), threading.RLock()
    writer: Any = vars(Runs)["_writer"].fget
    find = Runs.find

    class Writer:
        def __init__(self, runs: Runs) -> None:
            self._runs = runs

        def __getattr__(self, name: str) -> Any:
            def call(*words: Any, **options: Any) -> Any:
                with tracking:
                    return getattr(writer(self._runs), name)(*words, **options)

            return call

    def finding(self: Runs, study_id: str) -> dict[str, Any]:
        with tracking:
            return find(self, study_id)

    def stopping(
        self: FolderStore, key: str, data: bytes | Path, *, if_absent: bool = False
    ) -> None:
        if not stopped and "/journal/" in key and isinstance(data, bytes) and text in data:
            stopped.append(key)
            with tracking:
                # to this thread: it stands still before it lets go, whatever the others do
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        put(self, key, data, if_absent=if_absent)

    Runs._writer = property(Writer)  # type: ignore[assignment,method-assign]  # as below
    Runs.find = finding  # type: ignore[method-assign]  # as below
    FolderStore.put = stopping  # type: ignore[method-assign]  # that is what this is for


def start_elsewhere(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a verb, with the options above before it, in a folder with a home of its own."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    own = {
        "HOME": str(folder / "home"),
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        cwd=folder,
        env={**os.environ, **own, "COLUMNS": "120", "PYTHONWARNINGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Canaries where secrets are, and looks at what is written and shown, for one of them."""

import base64
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types

SECRET = "canary9Zx81Qm42secret"  # of letters and digits: the same in every writing but base64
PAIR = f"somebody:{SECRET}"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY7777777777",
    "AWS_SECRET_ACCESS_KEY": SECRET + "A",
    "AWS_SESSION_TOKEN": SECRET + "B",
    "RAY_AUTH_TOKEN": SECRET + "C" + "0" * 20,
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "MLFLOW_TRACKING_URI": f"postgresql://{PAIR}@127.0.0.1:9/runs",
    "MLFLOW_BACKEND_STORE_URI": f"postgresql://{PAIR}@127.0.0.1:9/runs",
    "DATABASE_URL": f"http://{PAIR}@127.0.0.1:9",
}
MARKS = (SECRET.encode(), base64.b64encode(PAIR.encode()), b"AKIACANARY7777777777")


def leaks(written: dict[str, bytes]) -> list[str]:
    """The names of what has a canary in it."""
    return [name for name, content in written.items() if any(mark in content for mark in MARKS)]


def files(*folders: Path) -> dict[str, bytes]:
    """All files of folders; what comes and goes meanwhile is left out."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(OSError):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


class Watch:
    """What the processes of a study show to everybody on their machine, from start to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.commands: set[str] = set()
        self.listens: set[tuple[str, str]] = set()
        self._process = process
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def _look_on(self) -> None:
        while self._process.poll() is None:
            with suppress(psutil.Error):
                driver = psutil.Process(self._process.pid)
                for one in [driver, *driver.children(recursive=True)]:
                    self._look(one)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def _look(self, one: Any) -> None:
        with suppress(psutil.Error):
            self.commands.add(" ".join(one.cmdline()))
            for link in one.net_connections("inet"):
                if link.status == psutil.CONN_LISTEN:
                    self.listens.add((link.laddr.ip, one.name()))

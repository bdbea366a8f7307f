"""A real head of Ray with token authentication, in a process of its own, for tests."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types

from orchestrator.errors import ClusterError
from orchestrator.ray_backend.dashboard import ask
from tests.ports import free_ports
from tests.studies import environment

START_SECONDS = 180
ATTEMPTS = 3


@dataclass(frozen=True)
class Head:
    """A head that runs, and how it is spoken with."""

    port: int
    dashboard_port: int
    folder: Path
    variables: dict[str, str]
    """The environment of its clients."""

    @property
    def address(self) -> str:
        """Where drivers join."""
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are handed in."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """A client's command, in a folder of the test."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def orchestrator(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """A verb as a client runs it."""
        return self.start(sys.executable, "-m", "orchestrator", *arguments, **variables)


@contextmanager
def running_head(folder: Path, cpus: int) -> Iterator[Head]:
    """A head on free ports of loopback; a stopped job has a minute to drain."""
    here = tempfile.mkdtemp(prefix="m2ptr", dir="/tmp")  # Ray's sockets need a short path
    port, dashboard, agent, client = free_ports(4)
    # this process's own token: Ray's clients in here have read it, and read it once
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    variables = environment(folder) | own | tools | quiet
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        variables.pop(name, None)
    command = [
        "ray", "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}",
        f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0",
        f"--temp-dir={here}", "--object-store-memory=200000000",
    ]  # fmt: skip
    head = Head(port, dashboard, folder, variables)
    process = None
    try:
        for _ in range(ATTEMPTS):
            process = _start(command, variables | {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, folder)
            if _is_up(head, process):
                break
        else:
            raise AssertionError((folder / "head.log").read_text())
        yield head
    finally:
        if process is not None:
            end_all(process)
        shutil.rmtree(here, ignore_errors=True)


def _start(command: list[str], variables: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "head.log").open("w") as log:
        return subprocess.Popen(
            command, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _is_up(head: Head, process: subprocess.Popen[bytes]) -> bool:
    """Whether the node comes up; Ray itself gives it thirty seconds, few on a crowded machine."""
    log, deadline = head.folder / "head.log", time.monotonic() + START_SECONDS
    while "To connect to this Ray cluster" not in log.read_text() or not _answers(head):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    return True


def _answers(head: Head) -> bool:
    try:
        return ask(head.dashboard, "/api/authentication_mode").status == 200
    except ClusterError:
        return False


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a head and all that descends from it, by id: kindly, then not."""
    with suppress(psutil.NoSuchProcess):  # it could not start, and ended what it had started
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=3)[1]:
            one.kill()
    process.wait(timeout=30)

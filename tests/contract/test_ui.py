"""`orchestrator ui`: MLflow's pages on a study's store answer on loopback, until it is ended."""

import time
import urllib.request
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.config.io import as_text
from orchestrator.storage import layout
from orchestrator.storage.uri import Store
from tests.ports import free_port
from tests.studies import TINY, experiment, kill_all, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def listens(pid: int) -> set[str]:
    """The addresses of this machine at which a process, or what it has started, is reached."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    links = [link for one in family for link in one.net_connections("inet")]
    return {link.laddr.ip for link in links if link.status == psutil.CONN_LISTEN}


def test_ui_serves_the_studys_store(tmp_path: Path) -> None:
    tiny = experiment(TINY, tmp_path / "store")
    store = Store.open(tiny.storage)
    store.put(layout.experiment("tiny"), as_text(tiny).encode())
    port = free_port()
    arguments = ["ui", "tiny", "--storage", tiny.storage, "--port", str(port)]
    server = start(tmp_path, *arguments)
    try:
        deadline = time.monotonic() + 150
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as page:
                    assert page.status == 200
                    break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.5)
        assert (tmp_path / "store" / "mlflow.db").exists()
        assert listens(server.pid) == {"127.0.0.1"}
        family = psutil.Process(server.pid).children(recursive=True)
        assert family
        server.terminate()
        _, err = server.communicate(timeout=60)
        assert (server.returncode, "Traceback" in err) == (0, False), err
        assert not psutil.wait_procs(family, timeout=10)[1]
    finally:
        if server.poll() is None:
            kill_all(server)

"""What the compose file runs, run here: its bucket and its MLflow on a real S3 server."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check import FOLDER
from orchestrator import environment
from tests.ports import free_port
from tests.swift import Swift

pytestmark = pytest.mark.slow
BUCKET = "m2pt"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    found: dict[str, Any] = document["services"]
    return found


def variables(service: dict[str, Any], swift: Swift) -> dict[str, str]:
    """A service's environment, its store being ours here."""
    own = {name: str(value) for name, value in service["environment"].items()}
    return {**os.environ, **own, **swift.variables}


@contextmanager
def mlflow(service: dict[str, Any], swift: Swift, folder: Path) -> Iterator[int]:
    """The server with the options of the compose file, on a free port of loopback."""
    port = free_port()
    text = " ".join(service["command"][1:]).replace("5000", str(port))
    text = text.replace("0.0.0.0", "127.0.0.1").replace("/home/ray/mlflow", str(folder))
    with (folder / "server.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *text.split()],
            cwd=folder,
            env=variables(service, swift) | {"PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while not answers(port, "127.0.0.1"):
            assert time.monotonic() < deadline, (folder / "server.txt").read_text()
            assert process.poll() is None, (folder / "server.txt").read_text()
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nobody else's
        process.wait()


def answers(port: int, host: str) -> bool:
    """Does the server take a request under this name?"""
    address = (
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    )
    request = urllib.request.Request(address, headers={"Host": f"{host}:{port}"})
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 403:
            raise
        return False
    except OSError:
        return False
    return True


def test_bucket_and_mlflow_of_the_compose_file(
    services: dict[str, Any], swift: Swift, tmp_path: Path
) -> None:
    bucket = services["bucket"]
    for _ in range(2):  # it is run at every start
        command = [sys.executable, *bucket["command"][1:]]
        subprocess.run(command, env=variables(bucket, swift), check=True, timeout=120)
    store = swift.client()
    assert BUCKET in [one["Name"] for one in store.list_buckets()["Buckets"]]
    with mlflow(services["mlflow"], swift, tmp_path) as port:
        assert answers(port, "mlflow")
        assert answers(port, "localhost")
        assert not answers(port, "elsewhere.example.org")
        environment.prepare_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(f"http://127.0.0.1:{port}")
        run = client.create_run(client.create_experiment("e")).info.run_id
        client.log_text(run, "hello", "note.txt")
        keys = [one["Key"] for one in store.list_objects_v2(Bucket=BUCKET)["Contents"]]
        assert [key for key in keys if key.startswith("mlflow/") and key.endswith("/note.txt")]

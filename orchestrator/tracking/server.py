"""An MLflow server on loopback for a tracking store on this machine."""

import contextlib
import subprocess
import sys

from orchestrator import environment
from orchestrator.tracking.reconcile import study_id
from orchestrator.tracking.record import StudyRecord
from orchestrator.tracking.runs import Order, Runs, compare_url


def study_page(uri: str, server: str, study: str, record: StudyRecord) -> str:
    """The address at which `server` shows the trials of `study` side by side.

    `uri` is the tracking store of which it is the server. Raises `TrackingError`.
    """
    order = Order.of(record.experiment.get("search", {}))
    runs = Runs.open(uri, study)
    page = compare_url(server, runs.experiment_id, study_id(study, record), order)
    assert page is not None  # a server has an address
    return page


def serve(uri: str, port: int) -> int:
    """Run `mlflow server` on the store `uri` until it ends or is interrupted."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]  # not a line for every request
    with contextlib.suppress(KeyboardInterrupt):
        return subprocess.run(command, env=environment.mlflow_server(), check=False).returncode
    return 0

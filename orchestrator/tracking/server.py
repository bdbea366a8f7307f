"""An MLflow server on loopback for a tracking store on this machine."""

import signal
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
    """Run `mlflow server` on the store `uri` until it ends, or this process is told to.

    By Ctrl-C, by SIGTERM, or since its terminal is closed (but for `nohup`): the server's own
    processes end as well, and free the port. Returns the server's exit code; 0 after a signal.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]  # not a line for every request
    told = list[int]()
    server: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: object) -> None:
        told.append(number)
        if server is not None:
            server.terminate()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    kept = {number: signal.signal(number, end) for number in heard}
    try:
        # a session of its own: told by the terminal as well, it would tell of its end at length
        server = subprocess.Popen(command, env=environment.mlflow_server(), start_new_session=True)
        if told:
            server.terminate()
        code = server.wait()
    finally:
        for number, reaction in kept.items():
            signal.signal(number, reaction)
    return 0 if told else code

"""An MLflow server on loopback for a tracking store on this machine."""

import contextlib
import subprocess
import sys

from orchestrator import environment


def serve(uri: str, port: int) -> int:
    """Run `mlflow server` on the store `uri` until it ends or is interrupted."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with contextlib.suppress(KeyboardInterrupt):
        return subprocess.run(command, env=environment.mlflow_server(), check=False).returncode
    return 0

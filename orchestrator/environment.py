"""Everything this project reads from or writes to the process environment: the one place."""

import os
import secrets
from pathlib import Path


def state_folder() -> Path:
    """The folder on this machine's disk for what must outlive a process (journal spools).

    `$XDG_STATE_HOME/m2pt`, else `~/.local/state/m2pt`. It is not created here.
    """
    root = os.environ.get("XDG_STATE_HOME") or os.path.join("~", ".local", "state")
    return Path(root).expanduser() / "m2pt"


def prepare_mlflow(*, timeout_seconds: int = 10) -> None:
    """Make MLflow's client in this process give up soon, and keep it from reporting its use.

    Its own defaults wait up to four minutes for a server that is away (7 retries, 120 s each);
    our tracker retries by itself, and looks first at what the attempt before has done.
    """
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"
    os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


def prepare_ray(*, local: bool) -> None:
    """Settings that Ray reads from the environment, before it is imported.

    A cluster that this process starts asks for a token, as Ray's own local clusters do; one that
    it joins brings its own. Tune's loggers and its state snapshots are off: the journal is the
    record, and tells in a line what Tune prints a page about. Ray reports no use, and does not
    change the working folder of trials.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1000000"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    if local and "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def cache_folder() -> Path:
    """The folder on this machine's disk for what can be fetched again (blobs).

    `$XDG_CACHE_HOME/m2pt`, else `~/.cache/m2pt`. It is not created here.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(root).expanduser() / "m2pt"


def mlflow_server() -> dict[str, str]:
    """The environment for an MLflow server of ours: no telemetry, and none of the nine processes
    that it would start for jobs nobody here submits."""
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",  # of its libraries about each other
    }
    return {**os.environ, **quiet}

"""Can a study be shown in this MLflow? Looked at within seconds; nothing is left behind."""

import contextlib
import logging
import os
import secrets
import socket
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from orchestrator import environment
from orchestrator.checks import Check
from orchestrator.errors import TrackingError
from orchestrator.tracking.runs import database_of, without_secret

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 6
_LOCKED_SECONDS = 3.0
_TAKEN = "RESOURCE_ALREADY_EXISTS"


def check(uri: str) -> None:
    """Raise `TrackingError`, naming the remedy, unless MLflow at `uri` can be written to.

    `uri` is one that an experiment takes: http(s)://HOST:PORT or sqlite:///FILE.
    """
    for _, step in _steps(uri):
        step()


def probe(uri: str) -> list[Check]:
    """The same for people: every step that was taken, up to the first that failed."""
    found: list[Check] = []
    for name, step in _steps(uri):
        try:
            found.append(Check(name, True, step()))
        except TrackingError as error:
            detail, _, remedy = str(error).rpartition("; ")
            return [*found, Check(name, False, detail, remedy)]
    return found


def _steps(uri: str) -> list[tuple[str, Callable[[], str]]]:
    """What is looked at, in order; each step says what it found or raises `TrackingError`."""
    file = database_of(uri)
    if file is not None:
        return [("MLflow file", lambda: _check_file(file))]
    return [
        ("MLflow reachable", lambda: _check_reachable(uri)),
        ("MLflow answers", lambda: _check_answers(uri)),
        ("MLflow writable", lambda: _check_writable(uri)),
    ]


def _check_reachable(uri: str) -> str:
    """Somebody listens there; a proxy of the environment is not gone round."""
    parts, shown = urlsplit(uri), without_secret(uri)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return f"{shown}, by way of a proxy"
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except socket.gaierror:
        raise TrackingError(
            f"tracking: no MLflow at {shown}: the name {host!r} is not known to this machine; "
            "correct it, or leave tracking out for a file beside the studies"
        ) from None
    except OSError as error:
        said = "no answer" if isinstance(error, TimeoutError) else str(error.strerror or error)
        raise TrackingError(
            f"tracking: no MLflow at {shown}: {said}; start it with `mlflow server --host {host} "
            f"--port {port}`, or leave tracking out for a file beside the studies"
        ) from None
    return shown


def _check_answers(uri: str) -> str:
    """It is MLflow, it takes this host name, and it lets this user read."""
    with _explained(uri):
        _client(uri).search_experiments(max_results=1)
    return without_secret(uri)


def _check_writable(uri: str) -> str:
    """An experiment can be created: one of a name that is taken, so that none is left behind."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    with _explained(uri):
        client = _client(uri)
        found = client.search_experiments(max_results=1, view_type=ViewType.ALL)
        if not found:
            return "it holds no experiment yet"
        try:
            made = client.create_experiment(found[0].name)
        except MlflowException as error:
            if error.error_code != _TAKEN:
                raise
        else:  # the experiment was removed for good in between
            client.delete_experiment(made)
    return "it takes experiments"


def _client(uri: str) -> Any:
    environment.prepare_mlflow(timeout_seconds=_ANSWER_SECONDS)
    from mlflow import MlflowClient

    return MlflowClient(uri)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """What MLflow's client raises, as what is wrong and what to do."""
    from mlflow.exceptions import MlflowException

    quiet = logging.getLogger("mlflow")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"tracking: {_reason(uri, error)}") from error
    finally:
        quiet.setLevel(level)


def _reason(uri: str, error: Any) -> str:
    shown, host = without_secret(uri), urlsplit(uri).netloc
    status = error.get_http_status_code() if hasattr(error, "json") else _status_in(str(error))
    said = " ".join(str(error).split())
    if "Invalid Host header" in said:
        return (
            f"MLflow at {shown} refuses its own name {host!r} (403, Invalid Host header); start it "
            f"with --allowed-hosts {host}, or use a name that it knows"
        )
    if status in (401, 403):
        return (
            f"MLflow at {shown} does not let this user in (HTTP {status}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ask for the right to write"
        )
    if "SSL" in said and uri.startswith("https"):
        return (
            f"no TLS connection with {shown}: {_short(said)}; does the server speak http, or is "
            "its authority unknown here (MLFLOW_TRACKING_SERVER_CERT_PATH)?"
        )
    if hasattr(error, "json") and status != 404:
        return f"MLflow at {shown} cannot be written to: {_short(said)}; see the server's log"
    if "imed out" in said:
        return f"{shown} does not answer within {_ANSWER_SECONDS} s; see to the server or proxy"
    return (
        f"what answers at {shown} is no MLflow server ({_short(said)}); check host and port, and "
        "that the address ends where MLflow's own paths begin"
    )


def _status_in(text: str) -> int:
    """MLflow's client tells the status of an answer that is not MLflow's in words only."""
    code = text.partition("failed with error code ")[2][:3]
    return int(code) if code.isdigit() else 0


def _short(text: str) -> str:
    text = environment.redacted(text)
    text = text.rpartition("Response body: ")[2] or text
    return text[:160].rstrip(" '.")


def _check_file(file: Path) -> str:
    """An SQLite file that MLflow can open, or a place where it can be made."""
    if not file.exists():
        _check_folder(file.parent)
        return f"{file} will be made"
    if not file.is_file():
        raise TrackingError(f"tracking: {file} is no file; name one, as sqlite:///mlflow.db")
    try:
        with closing(_opened(file)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in rows}
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"tracking: {file}: {error}; {_remedy(str(error))}") from None
    if tables and "alembic_version" not in tables:
        raise TrackingError(
            f"tracking: {file} is a database of another program (it has {sorted(tables)[0]!r}); "
            "name another file"
        )
    return str(file)


def _opened(file: Path) -> sqlite3.Connection:
    """For reading and writing; it is not made, and nothing is kept open beside it."""
    address = f"file:{quote(str(file))}?mode=rw"
    return sqlite3.connect(address, uri=True, timeout=_LOCKED_SECONDS, isolation_level=None)


def _remedy(said: str) -> str:
    if "locked" in said:
        return "another program holds it: end that, or name another file"
    if "readonly" in said or "unable to open" in said:
        return "make the file and its folder writable, or name another"
    return "MLflow did not write this file: name another, or move it away"


def _check_folder(folder: Path) -> None:
    """Raise unless a file can be made in `folder`, which itself may still have to be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise TrackingError(
            f"tracking: {there} is a file, so {folder} cannot be made; name another place"
        )
    trial = there / f".m2pt-probe-{secrets.token_hex(4)}"
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError as error:
        raise TrackingError(
            f"tracking: {there} cannot be written to: {error.strerror}; make it writable, or name "
            "another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()

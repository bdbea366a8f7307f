"""Everything this project reads from or writes to the process environment: the one place."""

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

AWS_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
"""What a process shows to S3 where no file or role says it."""
_CREDENTIALS = (
    *AWS_KEYS,
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
)
_SECRETS = ("SECRET", "TOKEN", "PASSWORD")
_IN_URIS = re.compile(r"(?<=://)[^/\s@'\"]*@")
_IN_QUERIES = re.compile(
    r"([?&](?:password|token|secret|sig|x-amz-(?:signature|credential|security-token))=)[^&\s'\"]+",
    re.IGNORECASE,
)
_CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")

_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
PREEMPTION_WATCHER = os.environ.get(_WATCHER, "1")
"""Whether Ray Train watches a joined cluster for nodes that are to leave: what the user says."""


@dataclass(frozen=True)
class S3Settings:
    """What the standard AWS variables say, but for the credentials: both clients find those."""

    endpoint: str | None
    """AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL; None for Amazon's own."""
    region: str | None
    ca_bundle: str | None
    key: str
    """AWS_ACCESS_KEY_ID, shortened to be shown; "" when credentials come from elsewhere."""
    checksums: tuple[str | None, ...]
    credentials: str = field(repr=False)
    """A digest of what names the credentials, so that new ones are noticed."""


def s3_settings() -> S3Settings:
    """Which S3 server this process uses."""
    get = os.environ.get
    key = get("AWS_ACCESS_KEY_ID") or ""
    named = "\0".join(get(name) or "" for name in _CREDENTIALS)
    return S3Settings(
        endpoint=get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL") or None,
        region=get("AWS_REGION") or get("AWS_DEFAULT_REGION") or None,
        ca_bundle=get("AWS_CA_BUNDLE") or None,
        key=key if len(key) < 8 else f"{key[:5]}...",
        checksums=tuple(get(name) for name in _CHECKSUMS),
        credentials=hashlib.sha256(named.encode()).hexdigest(),
    )


@contextmanager
def s3_checksums(setting: str) -> Iterator[None]:
    """For a while, S3 clients that are opened in this process send and expect checksums so."""
    before = {name: os.environ.get(name) for name in _CHECKSUMS}
    os.environ.update(dict.fromkeys(_CHECKSUMS, setting))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def redacted(text: str) -> str:
    """`text` without any secret of this process's environment, however it got in there.

    Also without the user and the password, or the signature, of any URI in it.
    """
    for secret in _known_secrets():
        text = text.replace(secret, "***")
    return _IN_QUERIES.sub(r"\1***", _IN_URIS.sub("***@", text))


def _known_secrets() -> Iterator[str]:
    """Each as it is, as URIs write it, and as HTTP sends it."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(word in name.upper() for word in _SECRETS):
            yield value
            if (quoted := quote(value, safe="")) != value:
                yield quoted
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if password:
        pair = f"{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}:{password}"
        yield base64.b64encode(pair.encode()).decode()


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
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # a model that needs one is refused


def prepare_ray(*, local: bool) -> None:
    """Settings that Ray reads from the environment, before it is imported.

    A cluster that this process starts listens on loopback and asks for a token; one that it joins
    brings its own. Tune's loggers and its state snapshots are off: the journal is the
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
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the trials, not the study
    if local:
        # Ray listens on every network of a machine, unless it takes the machine for one of those on
        # which it makes no clusters: there on loopback alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        if not os.environ.get("RAY_AUTH_TOKEN", "").strip():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not local:
        if ray_token() is not None:
            # Ray itself would not show the token to a cluster that is joined by its address
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")  # seconds until it is given up


def ray_controller(*, watched: bool) -> dict[str, str]:
    """What the controller of a gang finds in its environment beside what its machine's Ray has.

    Nobody announces that a machine leaves which is the only one: only where `watched`, and as the
    user says, does Ray look out for that, with a process per gang.
    """
    watcher = PREEMPTION_WATCHER if watched else "0"
    return {_WATCHER: watcher, "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}


def add(variables: dict[str, str]) -> None:
    """To this process's environment."""
    os.environ.update(variables)


def ray_address() -> str | None:
    """The cluster that this process belongs to or was pointed at; Ray sets it for its jobs."""
    return os.environ.get("RAY_ADDRESS") or None


def ray_dashboard() -> str | None:
    """Where jobs are handed in, as Ray's own command line reads it."""
    get = os.environ.get
    return get("RAY_API_SERVER_ADDRESS") or get("RAY_ADDRESS") or None


def use_ray_dashboard(address: str) -> None:
    """Make Ray's job client speak with `address`: otherwise the variables above override it."""
    os.environ["RAY_API_SERVER_ADDRESS"] = address


def ray_job() -> str | None:
    """The submission id of the Ray job that this process is the driver of; None outside of one."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
        found = config["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def ray_stop_seconds() -> int | None:
    """How long Ray waits on this node before it kills a job that was told to stop."""
    said = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or "3"  # Ray's default
    return int(said) if said.isdecimal() else None


def ray_asks_for_token() -> bool:
    """Whether the node of this process of Ray's was started with token authentication."""
    return (os.environ.get("RAY_AUTH_MODE") or "").lower() == "token"


@dataclass(frozen=True)
class RayToken:
    """The token that Ray's clients of this process show, and where it comes from."""

    place: str
    file: Path | None
    text: str = field(repr=False)


def ray_token() -> RayToken | None:
    """As Ray looks for it: a variable, the file that another variable names, the user's own."""
    if text := (os.environ.get("RAY_AUTH_TOKEN") or "").strip():
        return RayToken("RAY_AUTH_TOKEN", None, text)
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named or "~/.ray/auth_token").expanduser()
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    place = f"RAY_AUTH_TOKEN_PATH ({file})" if named else str(file)
    return RayToken(place, file, text) if text else None


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
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONWARNINGS": "ignore",  # of its libraries about each other
    }
    return {**os.environ, **quiet}

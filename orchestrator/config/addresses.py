"""Which addresses a study takes, as far as an experiment can tell. Nothing is contacted."""

import re
from urllib.parse import urlsplit

_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[^@]*)?")
_SQLITE = "sqlite:///"
_RULE = "write http://HOST:PORT of an MLflow server, or sqlite:///FILE"


def names_bucket(storage: str) -> bool:
    """Whether a storage URI names an S3 bucket; one that is malformed names none."""
    return _BUCKET.fullmatch(storage) is not None


def why_no_tracking(uri: str) -> str | None:
    """The rule that a tracking URI breaks, and the remedy; None where it breaks none.

    A password is never repeated.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return f"is no address; {_RULE}"
    if "@" in parts.netloc:
        return (
            "an address carries no user and no password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD instead"
        )
    if parts.scheme in ("http", "https"):
        if not parts.hostname or port == 0 or parts.query or parts.fragment:
            return f"is {uri!r}; {_RULE}"
        return None
    if uri.startswith(_SQLITE):
        return None if uri != _SQLITE else f"is {uri!r}, which names no file; {_RULE}"
    if parts.scheme in ("", "file"):
        return (
            f"is {uri!r}, but MLflow keeps runs in folders no more; {_RULE}, such as "
            "sqlite:///mlflow.db"
        )
    return f"is {parts.scheme}://...; {_RULE} (a server may keep its runs in any database)"

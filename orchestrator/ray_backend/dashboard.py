"""Asking a Ray head over HTTP, with a time limit and the token. Imports no Ray."""

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orchestrator import environment
from orchestrator.errors import ClusterError, RequestError

PATIENCE_SECONDS = 10.0
DEFAULT = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Answer:
    """What a head said. 401: it asks for a token; 403: it refuses the one that was shown."""

    status: int
    value: Any

    @property
    def refused(self) -> bool:
        """Whether the head wants a token, or another one."""
        return self.status in (401, 403)


def dashboard_address(given: str | None) -> str:
    """Where jobs are handed in: `--address`, else what Ray's own variables say.

    Raises `RequestError` when that is no HTTP address.
    """
    address = given or environment.ray_dashboard() or DEFAULT
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        source = "--address" if given else "RAY_ADDRESS"
        raise RequestError(
            f"{source} {address!r}: jobs are handed in at the head's dashboard; write "
            "http://HOST:8265"
        )
    if "@" in parts.netloc:
        raise RequestError(
            "--address: an address carries no user and no password; set RAY_AUTH_TOKEN"
        )
    return address.rstrip("/")


def ask(address: str, path: str, *, token: bool = True) -> Answer:
    """GET a path of the head at `address`, with our token unless told otherwise.

    Raises `ClusterError` when nothing answers.
    """
    request = urllib.request.Request(f"{address}{path}")
    ours = environment.ray_token() if token else None
    if ours is not None:
        request.add_header("Authorization", f"Bearer {ours.text}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
            return Answer(reply.status, json.load(reply))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(2000).decode(errors="replace"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise no_answer(address, error) from None


def no_answer(address: str, error: Exception) -> ClusterError:
    """Nothing at `address` speaks as the head of a Ray cluster does."""
    why = getattr(error, "reason", None) or error
    return ClusterError(
        f"no Ray head answers at {address}: {why}. See that `ray start --head` runs there with its "
        "dashboard (port 8265), and that the port is open from here"
    )


def refusal(address: str) -> ClusterError:
    """The head at `address` does not let us in."""
    ours = environment.ray_token()
    if ours is None:
        return ClusterError(f"the Ray head at {address} asks for a token. {token_remedy()}")
    return ClusterError(
        f"the Ray head at {address} refuses the token of {ours.place}. {token_remedy()}"
    )


def token_remedy() -> str:
    """How to come by the right token."""
    return (
        "Set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the head, or RAY_AUTH_TOKEN_PATH"
        " to a file that holds it"
    )

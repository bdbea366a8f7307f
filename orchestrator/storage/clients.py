"""From a URI to clients: boto3's and pyarrow's, with the same settings. The only place for it.

Endpoint, region, checksum setting and credentials come from the standard AWS variables (or, as
both clients know them, profiles and instance roles), in each process from its own environment: so
nothing that is pickled carries a secret.
"""

import threading
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from orchestrator import environment
from orchestrator.environment import S3Settings
from orchestrator.errors import RequestError
from orchestrator.storage import process
from orchestrator.storage.address import Folder, parse

ATTEMPTS = 6
"""Of one request, with growing pauses: about 15 seconds where the server says it is overloaded,
one or two where it is away or broken. Who must not give up then asks again (`storage.patient`)."""
QUICK_ATTEMPTS = 2
"""For a person who waits for an answer."""
CONNECT_SECONDS = 5
READ_SECONDS = 20
_CONNECTIONS = 32
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")

_opening = threading.Lock()


def boto_client(attempts: int = ATTEMPTS) -> Any:
    """This process's S3 client of boto3; it is safe in threads, and new when settings changed.

    Nothing is contacted. Raises RequestError when the endpoint is no address.
    """
    with _opening:  # boto3 may not build two at once
        return _boto_client(environment.s3_settings(), attempts, process.own_pid())


def forget_clients() -> None:
    """Open new ones from now on: their credentials may have been renewed elsewhere."""
    _boto_client.cache_clear()


def filesystem(uri: str, what: str = "storage", *, attempts: int = ATTEMPTS) -> tuple[Any, str]:
    """A `pyarrow.fs.FileSystem` and the path in it, for a plain path, file:// or s3:// address.

    Open it in the process that uses it: pickling drops its retries. Raises RequestError, also
    for an address that is none (`what` is said then).
    """
    from pyarrow import fs

    address = parse(uri, what)
    if isinstance(address, Folder):
        return fs.LocalFileSystem(), str(address.path)
    client, settings = boto_client(attempts), environment.s3_settings()
    options: dict[str, Any] = {"region": client.meta.region_name}
    endpoint = urlsplit(client.meta.endpoint_url)
    if not (endpoint.hostname or "").endswith(_AMAZON):
        options["endpoint_override"] = f"{endpoint.netloc}{endpoint.path.rstrip('/')}"
        options["scheme"] = endpoint.scheme
    if settings.ca_bundle:
        options["tls_ca_file_path"] = settings.ca_bundle
    s3 = fs.S3FileSystem(
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        **options,
    )
    return s3, f"{address.name}/{address.prefix}".rstrip("/")


def endpoint_shown() -> str:
    """The S3 endpoint of this process, for messages."""
    return environment.s3_settings().endpoint or "Amazon S3"


@lru_cache(maxsize=8)
def _boto_client(settings: S3Settings, attempts: int, pid: int) -> Any:
    del pid  # a forked process must not use its parent's connections
    import boto3
    import botocore.session
    from botocore.config import Config

    _check_endpoint(settings.endpoint)
    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)
    core.register_component("data_loader", _descriptions())
    style = {"addressing_style": "path"} if settings.endpoint else {}
    return session.client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region or session.region_name or "us-east-1",
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=_CONNECTIONS,
            s3=style,
        ),
    )


@lru_cache(maxsize=1)
def _descriptions() -> Any:
    """Of S3 and its endpoints. Each session would read them anew, for a fifth of a second."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in endpoint:
        raise RequestError(
            "AWS_ENDPOINT_URL must look like https://host:port, without a user's name or password"
        )

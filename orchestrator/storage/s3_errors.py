"""What S3 and the way to it answer, as errors of ours: where, what was said, and the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator import environment
from orchestrator.errors import OrchestratorError, StorageError
from orchestrator.storage import clients
from orchestrator.storage.uri import AlreadyThere, Missing, Unreachable

_MISSING = ("NoSuchKey", "404", "NotFound")
_TAKEN = ("PreconditionFailed", "412")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired")

CHECKSUM_REMEDY = (
    "export AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
    " AWS_RESPONSE_CHECKSUM_VALIDATION=when_required, on every node"
)
REMEDIES = {
    "SignatureDoesNotMatch": "the secret does not fit the key: check AWS_SECRET_ACCESS_KEY, and"
    " whether AWS_ACCESS_KEY_ID is of this server",
    "InvalidAccessKeyId": "this server does not know the key: check AWS_ACCESS_KEY_ID and"
    " AWS_ENDPOINT_URL",
    "NoSuchBucket": "there is no such bucket there: create it, or correct its name or"
    " AWS_ENDPOINT_URL",
    "AccessDenied": "the key may not do this: give it a policy that allows {operation} there",
    "AllAccessDisabled": "the account is closed there",
    "RequestTimeTooSkewed": "this machine's clock and the server's differ: set the clock",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_REGION",
    "MissingContentLength": f"this server does not take trailing checksums: {CHECKSUM_REMEDY}",
    "NoSuchUpload": "somebody ended the upload, or a rule of the bucket did: try again",
    "BadDigest": "the bytes changed on their way: try again, and check network and proxies",
    "XAmzContentSHA256Mismatch": "the bytes changed on their way: try again, and check network and"
    " proxies",
    "QuotaExceeded": "free some space there, or raise the quota, and resume",
    "XMinioStorageFull": "free some space there and resume",
    "InsufficientCapacity": "free some space there and resume",
    "EntityTooLarge": "the server takes no object of this size",
    "SlowDown": "the server is overloaded: try again later, or with fewer trials at once",
    "ServiceUnavailable": "the server is overloaded or starting: try again later",
    "InternalError": "the server has a fault of its own: look at its log, then try again",
}
"""By what S3 calls the fault."""
_STATUS = {
    "400": "a request that the server does not accept: does AWS_ENDPOINT_URL name an S3 server,"
    " with the right scheme?",
    "401": REMEDIES["InvalidAccessKeyId"],
    "403": "the key may not do this, or the secret is wrong: check AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY, and that its policy allows {operation} there",
    "411": REMEDIES["MissingContentLength"],
    "500": REMEDIES["InternalError"],
    "503": REMEDIES["ServiceUnavailable"],
    "507": "free some space there and resume",
}
_ACTIONS = {
    "read": "s3:GetObject",
    "look at": "s3:GetObject",
    "write": "s3:PutObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
}
_PASSING = (
    "SlowDown",
    "RequestTimeout",
    "ServiceUnavailable",
    "InternalError",
    "IncompleteBody",
    "NoSuchUpload",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
)
_EXPIRED_REMEDY = "the credentials have expired: renew them, and resume"
_NO_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or a role)"


@contextmanager
def explained(operation: str, uri: str) -> Iterator[None]:
    """Turn what boto3 raises into Missing, AlreadyThere, Unreachable or StorageError on `uri`."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except OrchestratorError:
        raise
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise _translated(error, operation, uri) from error


def code_of(error: BaseException) -> str:
    """What S3 calls the fault; "" for what is not from S3."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def remedy(code: str, status: int, operation: str) -> str:
    """What a person can do about an answer of S3."""
    if code in _EXPIRED:
        return _EXPIRED_REMEDY
    text = REMEDIES.get(code) or _STATUS.get(str(status)) or "see the server's documentation"
    return text.format(operation=_ACTIONS.get(operation, operation))


def _translated(error: Exception, operation: str, uri: str) -> StorageError:
    code = code_of(error)
    where = f"{uri} at {clients.endpoint_shown()}"
    if not code:
        said = " ".join(str(error).split()).rstrip(".")
        text = f"cannot {operation} {where}: {said}; {unreachable(error)}"
        return (Unreachable if _may_pass(error) else StorageError)(environment.redacted(text))
    if code in _MISSING:
        return Missing(f"cannot {operation} {where}: there is no such object")
    if code in _TAKEN:
        return AlreadyThere(f"cannot {operation} {where}: it is already there")
    if code in _EXPIRED:
        clients.forget_clients()
    response: dict[str, Any] = error.response  # type: ignore[attr-defined]  # it has a code
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = " ".join(str(response["Error"].get("Message") or "").split()).rstrip(".")
    said = f"{code} ({message})" if message and message != code else code
    key = environment.s3_settings().key
    by = f", key {key}" if key and status in (400, 401, 403) else ""
    text = f"cannot {operation} {where}{by}: {said}; {remedy(code, status, operation)}"
    passing = code in _EXPIRED or code in _PASSING or status >= 500
    return (Unreachable if passing else StorageError)(environment.redacted(text))


def _may_pass(error: Exception) -> bool:
    """Is it about the way to the server, and not about what was asked or how?"""
    from botocore import exceptions

    ways = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
    )
    return isinstance(error, ways) and not isinstance(error, exceptions.SSLError)


def unreachable(error: BaseException) -> str:
    """What a person can do about a request that got no answer from S3."""
    text = f"{type(error).__name__} {error}"
    endpoint = clients.endpoint_shown()
    if "SSL" in text:
        if re.search("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL", text, re.I):
            plain = endpoint.replace("https://", "http://", 1)
            return f"the server speaks http, not https: export AWS_ENDPOINT_URL={plain}"
        return "its certificate is not trusted here: name the authority's file in AWS_CA_BUNDLE"
    if "Credential" in text:
        return _NO_CREDENTIALS
    if "ConnectTimeout" in text or "EndpointConnection" in text:
        return "nobody answers there: is the server up, and AWS_ENDPOINT_URL right?"
    if "ConnectionClosed" in text or "BadStatusLine" in text:
        return "the server hung up: does it speak https, or does a proxy stand between?"
    if "Timeout" in text:
        return "the server is too slow, or a firewall swallows the requests: try again"
    return "check AWS_ENDPOINT_URL and the network"

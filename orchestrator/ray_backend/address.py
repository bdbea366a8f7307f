"""Which Ray a study runs on, and whether anything listens there. Imports no Ray."""

import socket
from dataclasses import dataclass

from orchestrator import environment
from orchestrator.errors import ClusterError

REACH_SECONDS = 5.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How HTTP/2 begins, and so gRPC: the other side answers with its settings at once."""


@dataclass(frozen=True)
class Destination:
    """A cluster to join, or None to start one on this machine; `told` is that in words."""

    address: str | None
    told: str


def destination(given: str | None) -> Destination:
    """Where to run: `--address` before RAY_ADDRESS (which Ray sets for a job's driver).

    Raises `ClusterError` for an address that a study's driver cannot join.
    """
    return chosen(given, environment.ray_address())


def chosen(given: str | None, named: str | None) -> Destination:
    """As `destination`, with what RAY_ADDRESS says as `named`."""
    address = given or named
    if address is None or address == "local":
        return Destination(None, "starting Ray on this machine")
    source = "--address" if given else "RAY_ADDRESS"
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{source} {address} is where jobs are handed in: `orchestrator submit FILE --address "
            f"{address}` runs the study there. To join from a machine of the cluster, give "
            "HOST:6379 or auto; to start Ray on this machine, --address local"
        )
    if "://" in address:
        raise ClusterError(
            f"{source} {address}: a study's driver runs on a machine of the cluster; hand the "
            "study in with `orchestrator submit FILE --address http://HEAD:8265`"
        )
    return Destination(address, f"joining Ray at {address} ({source})")


def check_reachable(address: str) -> None:
    """Raise `ClusterError` when nothing listens at HOST:PORT.

    Ray itself would try for minutes, and then end the process.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        if address == "auto":
            return  # Ray looks for a cluster of this machine, and says at once when there is none
        raise ClusterError(f"--address {address!r}: write HOST:PORT (Ray's port is 6379), or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS) as there:
            ray = _may_be_ray(there)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}. See that its head runs (`ray start "
            "--head`), that the port is that of Ray (6379) and that no firewall is between; or "
            "leave --address out for a cluster of this machine"
        ) from None
    if not ray:
        raise ClusterError(
            f"what answers at {address} is not Ray: give the port that its head prints for `ray "
            "start --address` (6379), not that of its dashboard (8265) or of another server"
        )


def _may_be_ray(there: socket.socket) -> bool:
    """Whether the other side may speak gRPC: it answers neither in text nor not at all.

    Ray would ask what does not understand it for minutes. A server with TLS hangs up.
    """
    there.sendall(_GREETING)
    try:
        answer = there.recv(1)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return not (answer.isascii() and answer.decode().isprintable() and answer)

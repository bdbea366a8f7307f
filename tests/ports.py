"""Ports for servers that tests start, and that are asked for by number."""

import itertools
import os
import random
import socket
from contextlib import ExitStack

# Below those that systems give to whoever names none (Linux from 32768, macOS from 49152), and
# above Ray's workers (10002 to 19999): between the choice and the server's start none of them
# takes it. Two of pytest's workers do not choose the same either.
_RANGE = range(20_000, 32_000)
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_own = list(_RANGE[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) :: _workers])
random.shuffle(_own)
_next = itertools.cycle(_own)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, and that nobody gets by chance."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = next(_next)
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports


def free_port() -> int:
    """One of `free_ports`."""
    (port,) = free_ports(1)
    return port

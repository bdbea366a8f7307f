"""Connecting to Ray: a cluster that is there, or one started for this study on this machine."""

import io
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

from orchestrator import environment
from orchestrator.errors import ClusterError, OrchestratorError, Stopped
from orchestrator.ray_backend.address import check_reachable
from orchestrator.ray_backend.capacity import Capacity, in_cluster
from orchestrator.ray_backend.dashboard import token_remedy


@dataclass(frozen=True)
class Cluster:
    """What a study needs to know of the Ray it runs on."""

    node_id: str
    """The driver's node: trials and the mailbox stay there."""
    capacity: Capacity
    folder: str
    """Scratch for Ray Train's and Tune's own state, on the driver's disk."""
    own: bool
    """Whether it was started for the study: this machine, and never another."""


@contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Join the cluster at `address` (HOST:PORT, "auto": the one of this machine), or start one.

    A cluster started here (None) binds to loopback, takes a token and ends with the context.
    Raises `ClusterError` when nothing answers at `address`, or it does not let us in. What Ray
    prints goes to stderr meanwhile.
    """
    with redirect_stdout(_Remarks()):
        yield from _connected(address)


def _connected(address: str | None) -> Iterator[Cluster]:
    if address is not None:
        check_reachable(address)
    environment.prepare_ray(local=address is None)
    import ray

    said = _CoreOutput()
    try:
        with _signals_kept(), said.kept(address is not None):
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({"include_dashboard": False} if address is None else {}),
            )
    except Stopped:
        ray.shutdown()
        raise
    except Exception as error:  # Ray raises all kinds, a bare Exception among them
        raise _not_let_in(address, error, said.text) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="m2pt-ray-", ignore_cleanup_errors=True) as folder:
        try:
            yield Cluster(
                node_id=ray.get_runtime_context().get_node_id(),
                capacity=in_cluster(ray.nodes()),
                folder=folder,
                own=address is None,
            )
        except Exception as error:
            ours = _ours(error)
            if ours is error:
                raise
            raise ours from None
        finally:
            ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray's own SIGTERM handler ends the process on the spot; whoever called drains instead.

    Raises:
        Stopped: SIGTERM came to Ray's handler, and then to the caller's.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    terminated = False
    try:
        yield
    except SystemExit as ended:
        terminated = ended.code == signal.SIGTERM
        if not terminated:
            raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, reaction in kept.items():
                if reaction is not None:  # one that was not set from Python
                    signal.signal(number, reaction)
    if terminated:
        signal.raise_signal(signal.SIGTERM)
        raise Stopped("SIGTERM was received while Ray was started or joined")


class _CoreOutput:
    """What Ray's core writes to the process's own stderr: past Python, a line for each attempt."""

    def __init__(self) -> None:
        self.text = ""

    @contextmanager
    def kept(self, wanted: bool) -> Iterator[None]:
        """Keep it as `text`; pass it on where all went well."""
        if not wanted:
            yield
            return
        sys.stderr.flush()
        real = os.dup(2)
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(real, 2)
                os.close(real)
                file.seek(0)
                self.text = file.read().decode(errors="replace")
        sys.stderr.write(self.text)


def _not_let_in(address: str | None, error: Exception, said: str) -> ClusterError:
    """Why Ray could not be started or joined; `said` is what its core said meanwhile."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if address is None:
        return ClusterError(f"Ray cannot be started on this machine: {first}")
    if isinstance(error, RuntimeError):  # it answered, and does not suit: another version
        return ClusterError(
            f"the Ray cluster at {address} cannot be joined: {error}. Its versions of Ray and "
            "Python must be the same as here"
        )
    token = environment.ray_token()
    if "InvalidAuthToken" in said:
        what = "asks for a token" if token is None else f"refuses the token of {token.place}"
        return ClusterError(f"the Ray cluster at {address} {what}. {token_remedy()}")
    shown = "no token is set here" if token is None else f"the token of {token.place} was shown"
    return ClusterError(
        f"no Ray cluster answers at {address}, or it refuses the token ({shown}): {first}. Set "
        "RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head; start one with `ray start "
        "--head`; or leave --address out for a cluster of this machine"
    )


def _ours(error: Exception) -> Exception:
    """What lies behind an error that went through Ray: an error of ours, if there is one.

    Tune wraps what our searcher, scheduler and callbacks raise.
    """
    from ray.exceptions import RayActorError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OrchestratorError):
            return cause
        if isinstance(cause, RayActorError):
            return ClusterError(f"a process of Ray's died: {cause}; the same command goes on")
        cause = cause.__cause__ or cause.__context__
    return error


class _Remarks(io.TextIOBase):
    """Takes what Ray prints to stdout about its nodes and passes it on to stderr, line by line.

    stdout is for results. One remark is dropped: that there are more processes than CPUs, which is
    so by design (trials and the mailbox ask for no CPU).
    """

    EXPECTED = "worker processes have been started on node"

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if self.EXPECTED not in line:
                print(line, file=sys.stderr)
        return len(text)

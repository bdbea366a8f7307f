"""Connecting to Ray: a cluster that is there, or one started for this study on this machine."""

import io
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

from orchestrator import environment
from orchestrator.config.experiment import Resources
from orchestrator.errors import ClusterError, OrchestratorError


@dataclass(frozen=True)
class Cluster:
    """What a study needs to know of the Ray it runs on."""

    node_id: str
    """The driver's node: trials and the mailbox stay there."""
    cpus: float
    gpus: float
    folder: str
    """Scratch for Ray Train's and Tune's own state, on the driver's disk."""


@contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Join the cluster at `address` ("auto" for the one of this machine), or start one (None).

    A cluster started here binds to loopback, takes a token and ends with the context. Raises
    `ClusterError` when nothing answers at `address`. What Ray prints goes to stderr meanwhile.
    """
    with redirect_stdout(_Remarks()):
        yield from _connected(address)


def _connected(address: str | None) -> Iterator[Cluster]:
    environment.prepare_ray(local=address is None)
    import ray

    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({"include_dashboard": False} if address is None else {}),
        )
    except (ConnectionError, RuntimeError, OSError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address!r}: {error}. Start one with `ray start --head`, "
            "set RAY_AUTH_TOKEN to its token, or leave --address out for a cluster of this machine"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    total = ray.cluster_resources()
    with tempfile.TemporaryDirectory(prefix="m2pt-ray-", ignore_cleanup_errors=True) as folder:
        try:
            yield Cluster(
                node_id=ray.get_runtime_context().get_node_id(),
                cpus=total.get("CPU", 0.0),
                gpus=total.get("GPU", 0.0),
                folder=folder,
            )
        except Exception as error:
            ours = _ours(error)
            if ours is error:
                raise
            raise ours from None
        finally:
            ray.shutdown()


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


def gangs_that_fit(resources: Resources, cluster: Cluster) -> int:
    """How many gangs the cluster can hold at once, at most `concurrent_trials`.

    Raises `ClusterError` when not even one fits.
    """
    cpus = resources.workers * resources.cpus_per_worker
    gpus = resources.workers * resources.gpus_per_worker
    fits = [resources.concurrent_trials]
    if cpus:
        fits.append(int(cluster.cpus // cpus))
    if gpus:
        fits.append(int(cluster.gpus // gpus))
    if min(fits) < 1:
        raise ClusterError(
            f"one trial asks for {resources.workers} workers of {resources.cpus_per_worker:g} CPUs "
            f"and {resources.gpus_per_worker:g} GPUs; the cluster has {cluster.cpus:g} CPUs and "
            f"{cluster.gpus:g} GPUs: lower resources.workers or join a larger cluster (--address)"
        )
    return min(fits)

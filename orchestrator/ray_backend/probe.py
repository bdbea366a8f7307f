"""Is Ray there, does it let us in, is it the right one, and does it offer what is asked for?

Looking is done at the edges; what a finding means is said by small functions of plain values.
Through the head's HTTP address less is seen than from a machine of the cluster.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from orchestrator import environment
from orchestrator.checks import Check
from orchestrator.config.experiment import Resources
from orchestrator.errors import ClusterError
from orchestrator.ray_backend.address import destination
from orchestrator.ray_backend.capacity import Capacity, Node, on_this_machine
from orchestrator.ray_backend.dashboard import ask, token_remedy

SHARED_MEMORY = "/dev/shm"
LEAST_SHARED_BYTES = 2 * 2**30
LEAST_FREE_BYTES = 2**29
LEAST_STOP_SECONDS = 30
NODES_LOOKED_AT = 16
LOOK_SECONDS = 60.0


@dataclass(frozen=True)
class NodeLook:
    """What a process of Ray's finds on its own machine. Sizes in bytes; None: not to be seen."""

    host: str
    shared: tuple[int, int] | None
    """Size of /dev/shm, and how much of it is free."""
    stop_seconds: int | None
    token: bool
    """Whether this node asks for a token."""


def probe(address: str | None, resources: Resources | None = None) -> list[Check]:
    """Look at the cluster that `--address` or RAY_ADDRESS names, or at this machine.

    Takes seconds; starts no cluster. `resources` are compared with what is offered. Raises
    nothing: what does not work is a Check that is not ok.
    """
    named = address or environment.ray_address() or ""
    checks = list(_own_token())
    try:
        if named.startswith(("http://", "https://")):
            return [*checks, *_over_http(named.rstrip("/"), resources)]
        where = destination(address).address
        if where is None:
            return list(_here(resources))
        return [*checks, *_from_inside(where, resources)]
    except ClusterError as error:
        return [*checks, failed("Ray", error)]


def failed(name: str, error: Exception) -> Check:
    """An error of ours as a check: our messages end with the remedy."""
    text = environment.redacted(str(error))
    detail, _, remedy = text.rpartition(". ")
    if not detail:
        detail, _, remedy = text.partition("; ")
    return Check(name, False, detail, remedy)


def _own_token() -> Iterator[Check]:
    token = environment.ray_token()
    if token is not None and token.file is not None:
        yield token_file(str(token.file), token.file.stat().st_mode & 0o777)


def token_file(file: str, mode: int) -> Check:
    """Who may read the token."""
    if mode & 0o077:
        detail = f"{file} can be read by other users (mode {mode:04o})"
        return Check("Ray token file", True, detail, f"chmod 600 {file}", warning=True)
    return Check("Ray token file", True, f"{file}, mode {mode:04o}")


def _here(resources: Resources | None) -> Iterator[Check]:
    """No cluster is named: a study would start Ray here."""
    ray, _ = _own_versions()
    yield Check("Ray", True, f"no cluster is named: Ray {ray} would be started on this machine")
    if resources is not None:
        try:
            yield enough(on_this_machine(resources), resources)
        except ClusterError as error:
            yield failed("Ray resources", error)
    yield from shared_memory("this machine", _shared())


def _over_http(address: str, resources: Resources | None) -> Iterator[Check]:
    """From outside, by way of the dashboard."""
    answer = ask(address, "/api/version")
    if answer.refused:
        yield refused(address, environment.ray_token())
        return
    if answer.status != 200:
        said = f"what answers at {address} is no Ray head (HTTP {answer.status})"
        yield Check("Ray", False, said, "give the address of its dashboard: http://HOST:8265")
        return
    yield Check("Ray", True, f"the head at {address} answers")
    yield door(open_to_all=ask(address, "/api/version", token=False).status == 200)
    about = ask(address, "/api/v0/cluster_metadata")
    if about.status == 200:
        found = about.value["data"]
        yield versions((found["rayVersion"], found["pythonVersion"]), _own_versions())
    nodes = ask(address, "/api/v0/nodes?detail=1")
    if nodes.status == 200 and resources is not None:
        yield enough(_capacity(nodes.value["data"]["result"]["result"]), resources)


def _capacity(nodes: Sequence[Mapping[str, Any]]) -> Capacity:
    offered = [node.get("resources_total") or {} for node in nodes if node["state"] == "ALIVE"]
    return Capacity(
        "the cluster", tuple(Node(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in offered)
    )


def _from_inside(address: str, resources: Resources | None) -> Iterator[Check]:
    """From a machine of the cluster, by joining it. Ray itself compares the versions."""
    from orchestrator.ray_backend.session import connect

    with connect(address) as cluster:
        ray, python = _own_versions()
        yield Check("Ray", True, f"joined {address}: Ray {ray}, Python {python}")
        if resources is not None:
            yield enough(cluster.capacity, resources)
        yield from _nodes()


def _nodes() -> Iterator[Check]:
    """What processes on the nodes find there; the head first."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = "node:__internal_head__"
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: head not in node["Resources"])
    task = ray.remote(num_cpus=0, max_retries=0)(_look)
    looks = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(node["NodeName"])
        for node in alive[:NODES_LOOKED_AT]
    ]
    try:
        found = ray.get(looks, timeout=LOOK_SECONDS)
    except (GetTimeoutError, RayError) as error:
        said = str(error).strip().splitlines()[-1][:300]
        remedy = "the orchestrator must be installed on every node, in the same release; see Ray's "
        yield Check("Ray nodes", False, f"no process could be started: {said}", f"{remedy}logs")
        return
    yield door(open_to_all=not found[0].token)
    yield from stop_seconds(found[0].stop_seconds)
    for look in found:
        yield from shared_memory(look.host, look.shared)


def _look(host: str) -> NodeLook:
    """Runs on a node, in a process of Ray's."""
    return NodeLook(
        host=host,
        shared=_shared(),
        stop_seconds=environment.ray_stop_seconds(),
        token=environment.ray_asks_for_token(),
    )


def _shared() -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return None
    return usage.total, usage.free


def _own_versions() -> tuple[str, str]:
    return metadata.version("ray"), ".".join(map(str, sys.version_info[:3]))


def versions(theirs: tuple[str, str], ours: tuple[str, str]) -> Check:
    """(Ray, Python) of the cluster and of this machine: Ray wants both to be the same."""
    differ = [
        f"{name} {there} there and {here} here"
        for name, there, here in zip(("Ray", "Python"), theirs, ours, strict=True)
        if there.split(".")[: 3 if name == "Ray" else 2]
        != here.split(".")[: 3 if name == "Ray" else 2]
    ]
    if differ:
        remedy = "install the cluster's versions here, or ours on all of its nodes"
        return Check("Ray version", False, "; ".join(differ), remedy)
    return Check("Ray version", True, f"Ray {theirs[0]}, Python {theirs[1]}, as here")


def refused(address: str, token: environment.RayToken | None) -> Check:
    """The head wants a token, or another one."""
    if token is None:
        detail = f"the head at {address} asks for a token, and none is set here"
    else:
        detail = f"the head at {address} refuses the token of {token.place}"
    return Check("Ray token", False, detail, token_remedy())


def door(*, open_to_all: bool) -> Check:
    """Whether the cluster asks for a token at all."""
    if not open_to_all:
        return Check("Ray token", True, "asked for, and ours is taken")
    return Check(
        "Ray token",
        True,
        "none is asked for: whoever reaches the head can run any code on the cluster",
        "start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN",
        warning=True,
    )


def enough(capacity: Capacity, resources: Resources) -> Check:
    """What the experiment asks for against what is there."""
    try:
        gangs = capacity.gangs(resources)
    except ClusterError as error:
        return failed("Ray resources", error)
    has = f"{capacity.what} has {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs"
    detail = f"{has}: {gangs} of {resources.concurrent_trials} trials train at once"
    fewer = gangs < resources.concurrent_trials
    remedy = "lower resources.concurrent_trials, or add nodes" if fewer else ""
    return Check("Ray resources", True, detail, remedy, warning=fewer)


def shared_memory(host: str, shared: tuple[int, int] | None) -> Iterator[Check]:
    """/dev/shm holds Ray's objects and what torch's data workers pass on; containers get little."""
    if shared is None:
        return
    size, free = shared
    detail = f"{SHARED_MEMORY} of {host}: {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"
    if size < LEAST_SHARED_BYTES:
        remedy = "give the container more: docker run --shm-size=8g, or an emptyDir with Memory"
    elif free < LEAST_FREE_BYTES:
        remedy = f"see what fills it: ls -l {SHARED_MEMORY}"
    else:
        remedy = ""
    yield Check("Ray shared memory", True, detail, remedy, warning=bool(remedy))


def stop_seconds(seconds: int | None) -> Iterator[Check]:
    """How long a stopped job may drain before Ray kills it."""
    if seconds is None:
        return
    detail = f"a job that is stopped has {seconds} s to drain (RAY_JOB_STOP_WAIT_TIME_S)"
    short = seconds < LEAST_STOP_SECONDS
    remedy = "start the head with RAY_JOB_STOP_WAIT_TIME_S=120" if short else ""
    yield Check("Ray job stop", True, detail, remedy, warning=short)

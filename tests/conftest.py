"""For all tests: Ray's settings stand before anything imports Ray, as in the command line."""

import atexit
import os
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from xdist.scheduler.loadfile import (  # type: ignore[import-untyped]  # it ships no types
    LoadFileScheduling,
)

from orchestrator import environment
from orchestrator.startup import all_imported, import_fast
from tests.contract.mlflow_setup import Server, running_server
from tests.proxy import ProxiedS3, proxied
from tests.swift import Swift, running, use

environment.prepare_ray(local=True)

# One gang more or less needs no watcher for nodes that leave, a process: only where one does leave.
environment.PREEMPTION_WATCHER = "0"

import_fast()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Registered first, called last: or Python would take apart all that was imported, for seconds.
    atexit.register(os._exit, 0)

# A shell's background command ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SHARING = "tests/ray/kept_gang/"

# How long an example takes says nothing on a machine that does other things as well.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


class ByGang(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """A file is run by one worker, and so are all files that share a gang."""

    def _split_scope(self, nodeid: str) -> str:
        return _SHARING if nodeid.startswith(_SHARING) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `--dist loadfile`."""
    return ByGang(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What tests import is there."""
    all_imported()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small lose more to waiting threads than they gain."""
    import torch  # here: the process that hands out the tests needs none

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A real S3 server; who kills it starts it again. It takes seconds: for slow tests."""
    with running(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow; who kills it starts it again, and experiments have names of their own."""
    with running_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head of Ray that studies join: to start one takes longer than to train.

    It has no dashboard, and nobody watches it from outside.
    """
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("head")
    bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(folder / name))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **bare})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def s3(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix in a fresh bucket; this process's AWS variables lead there."""
    use(swift, monkeypatch)
    return f"s3://{swift.bucket()}/pre fix"


@pytest.fixture
def proxied_s3(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxiedS3]:
    """As `s3`, but this process's AWS variables lead to a proxy that can spoil things."""
    with proxied(swift.endpoint) as proxy:
        use(swift, monkeypatch, AWS_ENDPOINT_URL=proxy.endpoint)
        yield ProxiedS3(f"s3://{swift.bucket()}/pre fix", proxy)

"""A whole study whose store goes away for two minutes, and its MLflow for longer.

Nearly all of that time it waits: it has a driver, a Ray and a store of its own, and a thread that
looks after them, so that other tests can run meanwhile in the same process.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.contract.mlflow_setup import Server
from tests.proxy import Blackhole, Proxy, proxied
from tests.studies import PATIENCE_SECONDS, TINY, environment, finish, kill_all
from tests.swift import Swift, running

SECONDS = 120
EPOCHS = 16
LONGER = ("--set", f"training.epochs={EPOCHS}", "--set", "training.batch_size=8")


@dataclass
class CutOff:
    """The study, and what it stands on."""

    server: Swift
    bucket: str
    tracking: Server
    between: Proxy
    """In front of MLflow."""
    driver: subprocess.Popen[str]
    told_in: dict[str, int] = field(default_factory=dict)
    """How many epochs each segment of its journal tells of: they stay as they are."""
    back: float = 0.0
    """When MLflow was there again, in unix seconds."""

    @property
    def storage(self) -> str:
        """Its address, for clients with the server's variables."""
        return _storage(self.bucket)

    def told(self) -> "CutOff":
        """Take both away and bring them back; the study ends well."""
        client = self.server.client()
        self._until(lambda: self._epochs(client) > 1)
        self.between.add(Blackhole(0))
        known = self._epochs(client)
        self._until(lambda: self._epochs(client) > known + 2)
        self.server.kill()
        time.sleep(SECONDS)
        assert self.driver.poll() is None
        self.server.start()
        self._until(lambda: self._epochs(client) == EPOCHS)
        self.back = time.time()
        self.between.clear()
        assert finish(self.driver)["exit_code"] == 0
        return self

    def _until(self, condition: Callable[[], bool]) -> None:
        """Each look is some requests: not as often as where a folder is looked at."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.driver.poll() is not None:
                raise AssertionError(f"it ended too early: {self.driver.communicate()}")
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def _epochs(self, client: Any) -> int:
        """How many the journal tells of; without this process's AWS variables, which are for
        others."""
        where = {"Bucket": self.bucket}
        listed = client.list_objects_v2(**where, Prefix="studies/studies/tiny/journal/")
        for key in {one["Key"] for one in listed.get("Contents", [])} - self.told_in.keys():
            segment = client.get_object(**where, Key=key)["Body"].read()
            self.told_in[key] = segment.count(b'"kind":"epoch"')
        return sum(self.told_in.values())


@contextmanager
def cut_off(folder: Path, tracking: Server) -> Iterator[Future[CutOff]]:
    """From here on it goes on by itself, in `folder`; all of it is there until the end."""
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: _begun(folder, tracking, stack).told())


def _begun(folder: Path, tracking: Server, stack: ExitStack) -> CutOff:
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "swift").mkdir()
    server = stack.enter_context(running(folder / "swift"))
    bucket = server.bucket()
    between = stack.enter_context(proxied(tracking.uri))
    driver = _start(folder, server, "--storage", _storage(bucket), "--tracking", between.endpoint)
    stack.callback(_end, driver)
    return CutOff(server, bucket, tracking, between, driver)


def _start(folder: Path, server: Swift, *places: str) -> subprocess.Popen[str]:
    """The driver, with AWS variables of its own."""
    words = ("search", "tiny.yaml", *places, *LONGER, "--json")
    own = {k: v for k, v in environment(folder).items() if not k.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=folder,
        env=own | server.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(driver: subprocess.Popen[str]) -> None:
    if driver.poll() is None:
        kill_all(driver)


def _storage(bucket: str) -> str:
    return f"s3://{bucket}/studies"

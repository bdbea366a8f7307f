"""A real S3 server for tests: OpenStack Swift with its S3 API, one node on loopback, no root.

The fixtures are in conftest.py: `swift` is one server for all tests of a session, `s3` a fresh
bucket on it with this process's AWS variables set.
"""

import configparser
import getpass
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

VARIABLES = {
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "PYTHONWARNINGS": "ignore",
}
"""Its own, not this process's: another thread may be changing those."""
BACKENDS = ("account", "container", "object")
ACCESS_KEY, READER_KEY = "lab:lab", "lab:reader"
FILTERS = (
    "catch_errors gatekeeper cache listing_formats bulk s3api tempauth copy slo dlo"
    " versioned_writes symlink"
)
RINGS = """
import json, sys
from swift.common.ring import RingBuilder
for path, port in json.loads(sys.argv[1]).items():
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1"}
    builder.add_dev(place | {"weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(path)
"""
"""All at once: `swift-ring-builder` would be nine processes, and four seconds."""
Sections = dict[str, dict[str, str]]


@dataclass
class Swift:
    """Four processes of ours: proxy, account, container and object server."""

    folder: Path
    secret: str = field(default_factory=lambda: secrets.token_hex(20))
    reader_secret: str = field(default_factory=lambda: secrets.token_hex(20))
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _ports: dict[str, int] = field(default_factory=dict)

    access_key = ACCESS_KEY

    @property
    def endpoint(self) -> str:
        """The address for AWS_ENDPOINT_URL; the same after `kill` and `start`."""
        return f"http://127.0.0.1:{self._ports['proxy']}"

    @property
    def pids(self) -> list[int]:
        """Of its processes, while it is up."""
        return [process.pid for process in self._processes.values()]

    @property
    def variables(self) -> dict[str, str]:
        """The AWS variables of a client that may do everything."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def reader_variables(self) -> dict[str, str]:
        """As `variables`, of a key that may only read buckets made with `bucket(readable=True)`."""
        own = {"AWS_ACCESS_KEY_ID": READER_KEY, "AWS_SECRET_ACCESS_KEY": self.reader_secret}
        return self.variables | own

    def client(self, **options: Any) -> Any:
        """A plain boto3 client, none of the product's."""
        from botocore.config import Config

        config = Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=30
        )
        return _session().client(
            "s3",
            **{
                "endpoint_url": self.endpoint,
                "aws_access_key_id": self.access_key,
                "aws_secret_access_key": self.secret,
                "region_name": "us-east-1",
                "config": config,
                **options,
            },
        )

    def bucket(self, *, readable: bool = False) -> str:
        """A new bucket; its name. With `readable`, keys that may not write it may read it."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name, ACL="public-read" if readable else "private")
        return name

    def start(self) -> None:
        """Start what is not running, and wait until a signed request is answered."""
        if not self._ports:
            self._set_up()
        for kind in BACKENDS:
            self._run(kind)
        for kind in BACKENDS:
            _wait_for(lambda kind=kind: _answers(self._ports[kind]), self._log(kind))
        self._run("proxy")  # last: it remembers a backend that was not there
        _wait_for(self._serves, self._log("proxy"))

    def kill(self) -> None:
        """End all four without a chance to tidy up; what it stored stays."""
        for process in self._processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _log(self, kind: str) -> Path:
        return self.folder / f"{kind}.txt"

    def _run(self, kind: str) -> None:
        if kind in self._processes:
            return
        with self._log(kind).open("ab") as log:
            self._processes[kind] = subprocess.Popen(
                [str(_program(f"swift-{kind}-server")), str(self.folder / f"{kind}.conf")],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=VARIABLES,
            )

    def _serves(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def _set_up(self) -> None:
        kinds = ("proxy", *BACKENDS)
        self._ports.update(zip(kinds, free_ports(len(kinds)), strict=True))
        (self.folder / "dev" / "d1").mkdir(parents=True)
        salt = {f"swift_hash_path_{end}": secrets.token_hex(8) for end in ("prefix", "suffix")}
        policy = {"name": "one", "default": "yes"}
        self._write("swift", {"swift-hash": salt, "storage-policy:0": policy})
        for kind in BACKENDS:
            self._write(kind, self._backend(kind))
        self._write("proxy", self._proxy())
        rings = {str(self.folder / f"{kind}.ring.gz"): self._ports[kind] for kind in BACKENDS}
        subprocess.run([sys.executable, "-c", RINGS, json.dumps(rings)], check=True, env=VARIABLES)

    def _write(self, name: str, sections: Sections) -> None:
        config = configparser.RawConfigParser()
        config.optionxform = str  # type: ignore[method-assign, assignment]  # keep the case
        config.read_dict(sections)
        with (self.folder / f"{name}.conf").open("w") as file:
            config.write(file)

    def _common(self, kind: str) -> dict[str, str]:
        return {
            "bind_ip": "127.0.0.1",
            "bind_port": str(self._ports[kind]),
            "workers": "0",
            "user": getpass.getuser(),
            "swift_dir": str(self.folder),
            "log_level": "WARNING",
        }

    def _backend(self, kind: str) -> Sections:
        place = {
            "devices": str(self.folder / "dev"),
            "mount_check": "false",
            "fallocate_reserve": "0",
            "recon_cache_path": str(self.folder),
        }
        return {
            "DEFAULT": self._common(kind) | place,
            "pipeline:main": {"pipeline": f"{kind}-server"},
            f"app:{kind}-server": {"use": f"egg:swift#{kind}"},
        }

    def _proxy(self) -> Sections:
        filters = {f"filter:{name}": {"use": f"egg:swift#{name}"} for name in FILTERS.split()}
        filters["filter:cache"] = {"paste.filter_factory": "tests.swift_cache:factory"}
        filters["filter:s3api"] |= {"location": "us-east-1", "s3_acl": "false"}
        filters["filter:versioned_writes"] |= {
            "allow_versioned_writes": "true",
            "allow_object_versioning": "true",
        }
        filters["filter:tempauth"] |= {
            "user_lab_lab": f"{self.secret} .admin",
            "user_lab_reader": self.reader_secret,
        }
        app = {
            "use": "egg:swift#proxy",
            "account_autocreate": "true",
            "allow_account_management": "true",
            "error_suppression_interval": "1",
            "error_suppression_limit": "1000000",
        }
        pipeline = {"pipeline": f"{FILTERS} proxy-server"}
        return {
            "DEFAULT": self._common("proxy"),
            "pipeline:main": pipeline,
            "app:proxy-server": app,
            **filters,
        }


@contextmanager
def running(folder: Path) -> Iterator[Swift]:
    """A Swift whose files lie in `folder`, which needs a file system with extended attributes."""
    server = Swift(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def use(server: Swift, patch: pytest.MonkeyPatch, **changes: str) -> None:
    """Set this process's AWS variables to the server's; no profile of the user's counts."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        patch.delenv(name, raising=False)
    for name, value in (server.variables | changes).items():
        patch.setenv(name, value)


@cache
def _session() -> Any:
    """One for all clients: each would read descriptions of services for a fifth of a second."""
    import boto3

    return boto3.session.Session()


def _program(name: str) -> Path:
    return Path(sys.executable).parent / name


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Any, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)

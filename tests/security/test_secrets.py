"""Canaries where secrets are: in the environment and in addresses. Nothing that is written has one.

A study on S3 looks for S3's secret in tests/ray/test_s3_study.py; addresses that an experiment
file may not have are in tests/contract/test_wrong_input.py.
"""

import base64
import http.server
import io
import logging
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator import environment
from orchestrator.cli import main
from orchestrator.conduct.log import StudyLog, Tee
from orchestrator.errors import TrackingError
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import Journal, read_events
from orchestrator.tracking.mlflow import Tracker
from tests.contract.wrong_input import BASE
from tests.studies import PATIENCE_SECONDS, TINY, kill_all, start, verb

SECRET = "canary9Zx81Qm42secret"  # of letters and digits: the same in every writing but base64
PAIR = f"somebody:{SECRET}"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY7777777777",
    "AWS_SECRET_ACCESS_KEY": SECRET + "A",
    "AWS_SESSION_TOKEN": SECRET + "B",
    "RAY_AUTH_TOKEN": SECRET + "C" + "0" * 20,
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "MLFLOW_TRACKING_URI": f"postgresql://{PAIR}@127.0.0.1:9/runs",
    "MLFLOW_BACKEND_STORE_URI": f"postgresql://{PAIR}@127.0.0.1:9/runs",
    "DATABASE_URL": f"http://{PAIR}@127.0.0.1:9",
}
MARKS = (SECRET.encode(), base64.b64encode(PAIR.encode()), b"AKIACANARY7777777777")


def leaks(written: dict[str, bytes]) -> list[str]:
    """The names of what has a canary in it."""
    return [name for name, content in written.items() if any(mark in content for mark in MARKS)]


def files(*folders: Path) -> dict[str, bytes]:
    """All files of folders; what comes and goes meanwhile is left out."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(OSError):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder of a process that has every secret."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.yaml").write_text(BASE)
    return tmp_path


def test_the_look_finds_a_canary(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_bytes(b"\0..." + SECRET.encode())
    (tmp_path / "head").write_bytes(b"Basic " + base64.b64encode(PAIR.encode()))
    assert len(leaks(files(tmp_path))) == 2


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://{PAIR}@host/db is away",
        f"cannot reach http://{PAIR}@host:5000/api/2.0?x=1",
        f"cannot reach 'http://:{SECRET}@host'",
        f"header Basic {base64.b64encode(PAIR.encode()).decode()}",
        f"https://bucket/key?X-Amz-Signature={SECRET}&X-Amz-Expires=5",
        f"https://host/?user=me&password={SECRET}",
        f"RAY_AUTH_TOKEN={ENVIRONMENT['RAY_AUTH_TOKEN']}",
    ],
)
def test_no_writing_of_a_secret_stays(planted: Path, text: str) -> None:
    shown = environment.redacted(text)
    assert "***" in shown
    assert not leaks({"shown": shown.encode()})


def test_what_is_no_secret_stays() -> None:
    text = "see https://host/a@b?x=1, s3://bucket/key and a@b.example"
    assert environment.redacted(text) == text


def test_a_secret_with_odd_letters_is_found_as_addresses_write_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "a/b c+d@e?f")
    assert environment.redacted("x=a%2Fb%20c%2Bd%40e%3Ff") == "x=***"


ADDRESS = f"http://{PAIR}@127.0.0.1:9"
COMMANDS = [
    ("search", "exp.yaml", "--tracking", f"postgresql://{PAIR}@127.0.0.1:9/runs"),
    ("search", "exp.yaml", "--set", f"tracking={ADDRESS}"),
    ("search", "exp.yaml", "--address", f"{PAIR}@127.0.0.1:9"),
    ("search", "exp.yaml", "--set", f"auxiliaries.a.weights=https://{PAIR}@host/x.pt",
     "--set", "pathway.auxiliary=a"),
    ("plan", "exp.yaml", "--set", f"data.source=s3://{PAIR}@bucket/x/"),
    ("submit", "exp.yaml", "--address", ADDRESS, "--storage", "s3://b/p", "--tracking",
     "http://127.0.0.1:9"),
    ("doctor", "exp.yaml", "--address", ADDRESS),
    ("doctor", "--storage", f"s3://{PAIR}@bucket/x"),
    ("doctor", "exp.yaml", "--tracking", f"postgresql://{PAIR}@127.0.0.1:9/runs"),
    ("doctor", "--storage", "s3://bucket/x", "--tracking", "http://127.0.0.1:9"),
    ("ui", "x", "--storage", f"s3://{PAIR}@bucket/x"),
    ("data", "show", f"s3://{PAIR}@bucket/x"),
    ("status", SECRET),
]  # fmt: skip


@pytest.mark.slow  # it imports Ray and MLflow, and waits for nobody
@pytest.mark.parametrize("how", [(), ("--json",), ("--debug",)], ids=["plain", "json", "debug"])
def test_what_fails_tells_no_secret(
    planted: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    for words in COMMANDS:
        assert main([*words, *how]) != 0, words
        said = capsys.readouterr()
        where = words[0] == "status"  # a study's name is no secret
        assert where or not leaks({"out": said.out.encode(), "err": said.err.encode()}), words
    assert set(leaks(files(planted))) == set()


def test_what_a_failed_trial_said_is_kept_without_secrets(planted: Path) -> None:
    store = Store.open(str(planted / "store"))
    with (
        Lease.acquire(store, "s") as lease,
        Journal.open(store, "s", lease, spool=planted / "spool") as journal,
    ):
        journal.append({"kind": "failed", "trial": "t", "error": f"OperationalError: {ADDRESS}"})
        journal.append({"kind": "gang_lost", "gang": "g", "attempt": 1, "why": f"Bearer {SECRET}C"})
        assert not leaks(files(planted))
    assert [event.get("error") or event.get("why") for event in read_events(store, "s")[1:]] == [
        "OperationalError: http://***@127.0.0.1:9",
        "Bearer ***C",
    ]


def test_the_log_of_a_study_has_no_secret(planted: Path) -> None:
    store = Store.open(str(planted / "store"))
    with StudyLog(store, "s", 1) as log:
        print(f"cannot reach {ADDRESS}, {SECRET[:9]}", file=Tee(io.StringIO(), log))
        log.write(f"half a line {SECRET[:9]}")
        log.write(f"{SECRET[9:]} and its end\n")
    assert store.list(layout.logs("s"))
    assert not leaks(files(planted / "store"))


def test_a_tracker_that_fails_tells_no_secret(
    planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker("http://127.0.0.1:9", "e", "s")
    with caplog.at_level(logging.WARNING):
        tracker._wait_after(OSError(f"{ADDRESS} refused {PAIR}"))
    state = tracker.state
    tracker.close(1)
    assert "refused somebody:***" in caplog.text
    assert not leaks({"log": caplog.text.encode(), "state": str(state).encode()})


@pytest.fixture
def parrot() -> Iterator[str]:
    """The address of a server that answers with the headers of who asks."""

    class Parrot(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            sent = self.headers.get("Authorization", "")
            plain = base64.b64decode(sent.removeprefix("Basic ")).decode()
            self.send_response(404)
            self.end_headers()
            self.wfile.write(f"who is {plain}? ({sent})".encode())

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Parrot) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow  # it imports MLflow
def test_a_server_that_repeats_the_password_is_not_quoted(planted: Path, parrot: str) -> None:
    from orchestrator.tracking.probe import check

    with pytest.raises(TrackingError) as refused:
        check(parrot)
    assert "who is somebody:***? (Basic ***" in str(refused.value)
    assert not leaks({"error": str(refused.value).encode()})


# A whole study ---------------------------------------------------------------------------------


class Watch:
    """What the processes of a study show to everybody on their machine, from start to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.commands: set[str] = set()
        self.listens: set[tuple[str, str]] = set()
        self._process = process
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def _look_on(self) -> None:
        while self._process.poll() is None:
            with suppress(psutil.Error):
                driver = psutil.Process(self._process.pid)
                for one in [driver, *driver.children(recursive=True)]:
                    self._look(one)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)

    def _look(self, one: Any) -> None:
        with suppress(psutil.Error):
            self.commands.add(" ".join(one.cmdline()))
            for link in one.net_connections("inet"):
                if link.status == psutil.CONN_LISTEN:
                    self.listens.add((link.laddr.ip, one.name()))


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Watch, str]]:
    """A study with every secret in its environment: its folder, Ray's, and what it said."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "tiny.yaml").write_text(TINY.replace("epochs: 4", "epochs: 1"))
    # not in pytest's folder: Ray's sockets need a short path
    with (
        tempfile.TemporaryDirectory(prefix="m2pts", dir="/tmp", ignore_cleanup_errors=True) as ray,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": ray}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_AUTH_MODE", raising=False)
        driver = start(folder, "search", "tiny.yaml")
        watch = Watch(driver)
        try:
            out, err = driver.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            kill_all(driver)
            raise
        assert driver.returncode == 0, f"{out}\n{err}"
        for words in (["report", "tiny", "--to", "report"], ["export", "tiny", "--to", "model"]):
            out += str(verb(folder, *words))
        yield folder, Path(ray), watch, out + err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_writes_no_secret(studied: tuple[Path, Path, Watch, str]) -> None:
    folder, session, watch, said = studied
    written = files(folder, session)
    for part in ("mlflow.db", "experiment.yaml", "report.html", "model.json", "gcs_server.out"):
        assert any(name.endswith(part) for name in written), part
    assert any("/logs/worker-" in name or "/logs/python-core-" in name for name in written)
    written |= {"said": said.encode()}
    written |= {f"command {text[:200]}": text.encode() for text in watch.commands}
    assert any("raylet" in text for text in watch.commands)
    assert not leaks(written)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_listens_on_loopback_alone(studied: tuple[Path, Path, Watch, str]) -> None:
    listens = studied[2].listens
    assert any("raylet" in name for _, name in listens)
    outside = {one for one in listens if not one[0].removeprefix("::ffff:").startswith("127.")}
    # PyTorch's rendezvous of a gang, a table of addresses, cannot be told where to listen;
    # a worker is named after what it does at the moment
    rendezvous = {"ray::RayTrainWorker", "ray::execute"}
    assert {name.partition(".")[0] for _, name in outside} <= rendezvous, outside


@pytest.mark.parametrize("token", ["", "of-mine-and-long-enough"])
def test_a_cluster_that_is_started_here_asks_for_a_token(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Also where a token is at hand, and nothing says that it is to be asked for."""
    own = {**os.environ, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": ""}
    monkeypatch.setattr(os, "environ", own)
    environment.prepare_ray(local=True)
    assert own["RAY_AUTH_MODE"] == "token"
    assert own["RAY_AUTH_TOKEN"] == token or (not token and len(own["RAY_AUTH_TOKEN"]) == 64)

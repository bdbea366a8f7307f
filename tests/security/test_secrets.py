"""Canaries where secrets are: in the environment and in addresses. Nothing that is written has one.

A whole study is looked at in tests/ray/test_quickstart.py, and one on S3 for S3's secret in
tests/ray/kept_gang/test_s3_study.py; addresses that an experiment file may not have are in
tests/contract/test_wrong_input.py.
"""

import base64
import http.server
import io
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.security.canaries import ENVIRONMENT, PAIR, SECRET, files, leaks


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

"""The log of a study under its prefix: what it holds, and that it never gets in the way."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.conduct import log
from orchestrator.conduct.log import LogReader, StudyLog, teed
from orchestrator.config.io import as_text
from orchestrator.errors import Stopped, StorageError
from orchestrator.storage import layout
from orchestrator.storage.uri import Store
from tests.studies import TINY, experiment


def wait_for(condition: Callable[[], Any]) -> None:
    """Until `condition` is true."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(store: Store) -> list[str]:
    """The log without its times."""
    text = "".join(LogReader(store, "s").new())
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  .*\S", row) for row in text.splitlines())
    return [row.partition("  ")[2] for row in text.splitlines()]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.01)
    return Store.open(str(tmp_path))


def test_lines_are_kept_in_numbered_objects_while_the_study_runs(store: Store) -> None:
    with StudyLog(store, "s", 3) as written:
        written.write("first\nsec")
        wait_for(lambda: store.exists(layout.log("s", 3, 1)))
        written.write("ond\n")
        wait_for(lambda: store.exists(layout.log("s", 3, 2)))
        assert lines(store) == ["first", "second"]
    with StudyLog(store, "s", 4) as written:
        written.write("without an end")
    assert lines(store) == ["first", "second", "without an end"]


def test_only_what_a_person_would_read_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    with StudyLog(store, "s", 1) as written:
        written.write("\x1b[1mbold\x1b[0m\n\n  \n10%\r50%\r100%\nkey very-secret-key\n")
    assert lines(store) == ["bold", "100%", "key ***"]


def test_stderr_goes_to_the_terminal_and_to_the_log(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with StudyLog(store, "s", 1) as written, teed(written):
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\n"
    assert lines(store) == ["a warning"]


def test_what_ended_the_study_is_kept(store: Store) -> None:
    with pytest.raises(Stopped), StudyLog(store, "s", 1):
        raise Stopped("SIGTERM was received")
    with pytest.raises(KeyError), StudyLog(store, "s", 2):
        raise KeyError("a fault")
    found = lines(store)
    assert found[0] == "orchestrator: SIGTERM was received"
    assert found[1].startswith("Traceback")
    assert found[-1] == "KeyError: 'a fault'"


def test_a_store_that_is_away_loses_nothing_and_stops_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def away(key: str, data: bytes) -> None:
        tried.append(key)
        raise StorageError("away")

    with StudyLog(store, "s", 1) as written, monkeypatch.context() as patch:
        patch.setattr(store, "put", away)
        written.write("one\n")
        wait_for(lambda: len(tried) > 2)
        written.write("two\n")
    assert lines(store) == ["one", "two"]


def test_a_store_that_stays_away_costs_no_more_than_a_mebibyte(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LARGEST_BYTES", 100)
    monkeypatch.setattr(log, "FLUSH_SECONDS", 60.0)
    with StudyLog(store, "s", 1) as written:
        written.write("a line\n" * 50)
    *kept, last = "".join(LogReader(store, "s").new()).splitlines()
    assert 0 < len(kept) < 10
    assert last == f"({50 - len(kept)} lines are missing here: the store was away)"


def test_pieces_get_rarer() -> None:
    assert log.pause(0) == log.FLUSH_SECONDS < log.pause(100) < log.pause(1000)
    assert log.pause(10_000) == log.SLOWEST_SECONDS


def test_logs_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(str(tmp_path))
    store.put(layout.experiment("tiny"), as_text(experiment(TINY, tmp_path)).encode())
    for number, text in enumerate(("one\n", "two\n"), 1):
        store.put(layout.log("tiny", 1, number), text.encode())
    assert main(["logs", "tiny", "--storage", str(tmp_path), "--follow"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert main(["logs", "tiny", "--storage", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == '{"study": "tiny", "log": ["one", "two"]}\n'
    assert main(["logs", "other", "--storage", str(tmp_path)]) == 2

"""The main job, as a newcomer runs it: `make quickstart` is `orchestrator quickstart`."""

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.studies import check_each_trial_ended_once, events, start, verb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


SHORTER = [
    *("--set", "data.limit=400", "--set", "training.epochs=4"),
    *(word for name in ("audio", "video", "point")
      for word in ("--set", f"auxiliaries.{name}.pretrain.epochs=1")),
]  # fmt: skip
"""Less training of as many trials: what they learn is not looked at here."""


def test_quickstart(tmp_path: Path) -> None:
    process = start(tmp_path, "quickstart", *SHORTER)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    happened = events(tmp_path / "m2pt-studies", "quickstart")
    outcome = check_each_trial_ended_once(happened)
    assert "failed" not in outcome.values()
    planned = [event for event in happened if event["kind"] == "planned"]
    assert Counter(event["stage"] for event in planned) == {
        "baseline": 3,
        "search": 16,
        "confirm": 2,
        "control": 3,
    }
    searched = {event["auxiliary"] for event in planned if event["stage"] == "search"}
    assert searched == {"audio", "video", "point", "random"}
    for said in ("none (baseline)", "verdict", "merge", "report.html", "orchestrator ui"):
        assert said in out
    for noise in (
        "INFO",
        "WARNING",
        "Traceback",
        "(pid=",
        "FutureWarning",
        "warnings.warn",
        "not complete",
    ):
        assert noise not in err, err

    began = time.monotonic()
    again = verb(tmp_path, "quickstart", *SHORTER)
    assert again["already_done"]
    assert time.monotonic() - began < 60  # seconds; the bound is for a busy machine
    assert events(tmp_path / "m2pt-studies", "quickstart") == happened
    assert len(again["proofs"]) == 1
    (proof,) = again["proofs"].values()
    assert proof["parameters_exported"] == proof["parameters_plain"] < proof["parameters_trained"]
    assert proof["keys_equal"]
    assert proof["test"]["relative_difference"] <= 1e-5

"""The main job, as a newcomer runs it: `make quickstart` is `orchestrator quickstart`.

It is given every secret that a study may have, and watched from outside.
"""

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.security.canaries import ENVIRONMENT, Watch, files, leaks
from tests.studies import check_each_trial_ended_once, events, kill_all, start, verb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORTER = [
    *("--set", "data.limit=200", "--set", "training.epochs=4", "--set", "search.trials=4"),
    *(word for name in ("audio", "video", "point")
      for one in ("epochs=1", "data.limit=200")
      for word in ("--set", f"auxiliaries.{name}.pretrain.{one}")),
]  # fmt: skip
"""Less training, and of fewer trials: what they learn is not looked at here."""


@dataclass(frozen=True)
class Quickstart:
    """What it left in its folder and in Ray's, and what it said."""

    folder: Path
    session: Path
    watch: Watch
    out: str
    err: str

    @property
    def storage(self) -> Path:
        return self.folder / "m2pt-studies"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quickstart]:
    folder = tmp_path_factory.mktemp("quickstart")
    # not in pytest's folder: Ray's sockets need a short path
    with (
        tempfile.TemporaryDirectory(prefix="m2pts", dir="/tmp", ignore_cleanup_errors=True) as ray,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": ray}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_AUTH_MODE", raising=False)
        driver = start(folder, "quickstart", *SHORTER)
        watch = Watch(driver)
        try:
            out, err = driver.communicate(timeout=800)
        except subprocess.TimeoutExpired:
            kill_all(driver)
            raise
        assert driver.returncode == 0, err
        yield Quickstart(folder, Path(ray), watch, out, err)


def test_all_that_is_planned_is_trained_and_told(quickstart: Quickstart) -> None:
    happened = events(quickstart.storage, "quickstart")
    outcome = check_each_trial_ended_once(happened)
    assert "failed" not in outcome.values()
    planned = [event for event in happened if event["kind"] == "planned"]
    stages = Counter(event["stage"] for event in planned)
    assert stages.keys() == {"baseline", "search", "confirm", "control"}
    assert (stages["baseline"], stages["search"], stages["confirm"]) == (3, 4, 2)
    (leader,), (control,) = (
        {event["arm"] for event in planned if event["stage"] == stage}
        for stage in ("confirm", "control")
    )
    for arm in (leader, control):  # on all seeds; the search may have had the control on its own
        assert len({event["seed"] for event in planned if event["arm"] == arm}) == 3
    searched = {event["auxiliary"] for event in planned if event["stage"] == "search"}
    assert searched == {"audio", "video", "point", "random"}
    for said in ("none (baseline)", "verdict", "merge", "report.html", "orchestrator ui"):
        assert said in quickstart.out
    for noise in (
        "INFO",
        "WARNING",
        "Traceback",
        "(pid=",
        "FutureWarning",
        "warnings.warn",
        "not complete",
    ):
        assert noise not in quickstart.err, quickstart.err


def test_again_it_trains_nothing_and_tells_of_the_proof(quickstart: Quickstart) -> None:
    happened = events(quickstart.storage, "quickstart")
    began = time.monotonic()
    again = verb(quickstart.folder, "quickstart", *SHORTER)
    assert again["already_done"]
    assert time.monotonic() - began < 60  # seconds; the bound is for a busy machine
    assert events(quickstart.storage, "quickstart") == happened
    assert len(again["proofs"]) == 1
    (proof,) = again["proofs"].values()
    assert proof["parameters_exported"] == proof["parameters_plain"] < proof["parameters_trained"]
    assert proof["keys_equal"]
    assert proof["test"]["relative_difference"] <= 1e-5


def test_no_secret_is_written_or_shown(quickstart: Quickstart) -> None:
    folder, place = quickstart.folder, ("--storage", "m2pt-studies")
    said = quickstart.out + quickstart.err
    for words in (["report", "--to", "report"], ["export", "--to", "model"]):
        said += str(verb(folder, words[0], "quickstart", *place, *words[1:]))
    written = files(folder, quickstart.session)
    for part in ("mlflow.db", "experiment.yaml", "report.html", "model.json", "gcs_server.out"):
        assert any(name.endswith(part) for name in written), part
    assert any("/logs/worker-" in name or "/logs/python-core-" in name for name in written)
    written |= {"said": said.encode()}
    written |= {f"command {text[:200]}": text.encode() for text in quickstart.watch.commands}
    assert any("raylet" in text for text in quickstart.watch.commands)
    assert not leaks(written)


def test_it_listens_on_loopback_alone(quickstart: Quickstart) -> None:
    listens = quickstart.watch.listens
    assert any("raylet" in name for _, name in listens)
    outside = {one for one in listens if not one[0].removeprefix("::ffff:").startswith("127.")}
    # PyTorch's rendezvous of a gang, a table of addresses, cannot be told where to listen;
    # a worker is named after what it does at the moment; the kernel keeps 15 letters of that, and
    # psutil finds the others as a rule
    rendezvous = {"ray::RayTrainWorker"[:15], "ray::execute"}
    assert {name.partition(".")[0][:15] for _, name in outside} <= rendezvous, outside

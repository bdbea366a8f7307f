"""Studies as jobs of a real head with token authentication, and the doctor's look at it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.storage import layout
from orchestrator.storage.uri import Store
from tests.ray.head import Head, running_head
from tests.studies import (
    PATIENCE_SECONDS,
    TINY,
    check_no_epoch_was_trained_again,
    events,
    finish,
    select,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "tiny.yaml").write_text(TINY)
    with running_head(folder, cpus=2) as one:
        yield one


def submit(head: Head, name: str, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    """`orchestrator submit` of a study of its own name."""
    named = [word for one in (f"name={name}", *overrides) for word in ("--set", one)]
    place = ("--storage", str(head.folder / "store"), "--address", head.dashboard)
    return head.orchestrator("submit", "tiny.yaml", "--json", *place, *named, **variables)


def happened(head: Head, name: str) -> list[dict[str, Any]]:
    """The journal of a study that was handed in."""
    return events(head.folder / "store", name)


def log_of(head: Head, name: str) -> str:
    """The log of its drivers, from the storage."""
    command = (sys.executable, "-m", "orchestrator", "logs", name)
    return said_by(head, *command, "--storage", str(head.folder / "store"))


def said_by(head: Head, *command: str) -> str:
    """What a client's command prints."""
    process = head.start(*command)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out + err


def test_ray_job_submit_and_orchestrator_submit_run_a_study_to_its_end(head: Head) -> None:
    """The first from this repository, as the documentation says; both at once."""
    search = ("python", "-m", "orchestrator", "search", str(head.folder / "tiny.yaml"))
    place = ("--storage", str(head.folder / "store"), "--set", "name=plain")
    plain = subprocess.Popen(
        ["ray", "job", "submit", "--working-dir", ".", "--", *search, *place],
        cwd=ROOT,
        env=head.variables | {"RAY_API_SERVER_ADDRESS": head.dashboard},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wrapped = submit(head, "wrapped")
    out, _ = plain.communicate(timeout=PATIENCE_SECONDS)
    assert plain.returncode == 0, out
    assert "succeeded" in out
    done = finish(wrapped)
    assert (done["exit_code"], done["status"]) == (0, "SUCCEEDED")
    assert done["submission_id"] == "m2pt-wrapped-1"
    assert "joining Ray at" in done["stderr"]
    for name in ("plain", "wrapped"):
        assert happened(head, name)[-1]["kind"] == "published"
        text = log_of(head, name)
        assert "(RAY_ADDRESS)" in text
        assert "writing report" in text
    token = head.variables["RAY_AUTH_TOKEN"]
    store = Store.open(str(head.folder / "store"))
    assert not any(token in store.get(one.key).decode(errors="ignore") for one in store.list())
    assert token not in out + done["stderr"]


def test_a_job_whose_supervisor_is_killed_goes_on_when_it_is_handed_in_again(head: Head) -> None:
    following = submit(head, "long", "training.epochs=5000")
    wait_until(following, lambda: len(select(happened(head, "long"), "epoch")) > 2)
    again = finish(submit(head, "long", "training.epochs=5000"), check=False)
    assert again["exit_code"] == 2
    assert "already running, as job m2pt-long-1" in again["error"]
    family = psutil.Process().children(recursive=True)
    titled = [one for one in family if "JobSupervisor" in " ".join(one.cmdline())]
    running = [one for one in titled if "m2pt-long-1" in " ".join(one.environ().values())]
    (supervisor,) = running or titled
    driver = next(one for one in supervisor.children(recursive=True) if "search" in one.cmdline())
    supervisor.kill()
    lost = finish(following, check=False)
    assert lost["exit_code"] == 5
    psutil.wait_procs([driver], timeout=60)
    before = happened(head, "long")
    following = submit(head, "long", "training.epochs=5000")
    trained = len(select(before, "epoch"))
    wait_until(following, lambda: len(select(happened(head, "long"), "epoch")) > trained + 2)
    assert happened(head, "long")[: len(before)] == before
    stopped = stop(head, following, "m2pt-long-2")
    assert (stopped["exit_code"], stopped["status"]) == (130, "STOPPED")


def stop(head: Head, following: subprocess.Popen[str], job: str) -> Any:
    """Stop a job as Ray's users do; what `submit`, which follows it, ends with."""
    command = ("ray", "job", "stop", "--no-wait", "--address", head.dashboard, job)
    assert job in said_by(head, *command)
    return finish(following, check=False)


def test_a_stopped_job_has_drained(head: Head) -> None:
    """The one that was handed in again."""
    store = Store.open(str(head.folder / "store"))
    assert json.loads(store.get(layout.lease("long", 2)))["released"]
    last = happened(head, "long")[-1]
    assert (last["kind"], last["why"]) == ("study_stopped", "SIGTERM was received")
    assert "orchestrator: SIGTERM was received" in log_of(head, "long")


def test_ctrl_c_drains_a_study_that_joined_the_head(head: Head) -> None:
    """The one that the job has left: it goes on here, from the storage."""
    trained = len(select(happened(head, "long"), "epoch"))
    place = ("--storage", str(head.folder / "store"), "--address", head.address)
    driver = head.orchestrator("resume", "long", "--json", *place)
    wait_until(driver, lambda: len(select(happened(head, "long"), "epoch")) > trained + 2)
    os.kill(driver.pid, signal.SIGINT)
    assert finish(driver, check=False)["exit_code"] == 130
    last = happened(head, "long")[-1]
    assert (last["kind"], last["why"]) == ("study_stopped", "SIGINT was received")
    check_no_epoch_was_trained_again(happened(head, "long"))


def test_a_job_whose_study_is_refused_ends_with_its_code(head: Head) -> None:
    """The data is named by a place that this machine cannot judge: only the cluster can."""
    refused = finish(submit(head, "nodata", "data.source=/nowhere/a.parquet"), check=False)
    assert (refused["exit_code"], refused["status"]) == (2, "FAILED")
    assert "/nowhere/a.parquet" in refused["stderr"]
    assert "its driver with exit code 2" in refused["stderr"]


def test_ctrl_c_leaves_the_job_alone(head: Head) -> None:
    following = submit(head, "alone", "data.source=/nowhere/a.parquet")
    assert following.stderr is not None
    said = following.stderr.readline()
    assert "job m2pt-alone-1 is handed in" in said
    os.kill(following.pid, signal.SIGINT)
    left = finish(following, check=False)
    assert left["exit_code"] == 130
    assert "goes on without this terminal" in left["stderr"]
    assert "orchestrator logs alone --storage" in left["stderr"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    status = ("ray", "job", "status", "--address", head.dashboard, "m2pt-alone-1")
    while "failed" not in (found := said_by(head, *status)):
        assert "stopped" not in found
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_wrong_or_missing_token_is_refused(head: Head, token: str | None) -> None:
    variables = {"RAY_AUTH_TOKEN": token or "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}
    refused = finish(submit(head, "wrong", **variables), check=False)
    assert refused["exit_code"] == 5
    assert ("refuses the token" if token else "asks for a token") in refused["error"]
    assert "`ray get-auth-token`" in refused["error"]
    doctor = finish(
        head.orchestrator("doctor", "--json", "--address", head.dashboard, **variables), check=False
    )
    assert doctor["exit_code"] == 5
    (failed,) = (check for check in doctor["checks"] if check["state"] == "failed")
    assert failed["name"] == "Ray token"
    assert "`ray get-auth-token`" in failed["remedy"]
    assert not happened(head, "wrong")


@pytest.mark.parametrize("inside", [False, True])
def test_the_doctor_finds_the_head_well(head: Head, inside: bool) -> None:
    address = head.address if inside else head.dashboard
    looking = head.orchestrator("doctor", "tiny.yaml", "--json", "--address", address)
    found = finish(looking)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["Ray"] == states["Ray token"] == states["Ray resources"] == "ok"
    if inside:
        assert states["Ray job stop"] == "ok"
        assert "Ray shared memory" in states
    else:
        assert states["Ray version"] == "ok"
    assert json.dumps(found).count(head.variables["RAY_AUTH_TOKEN"]) == 0

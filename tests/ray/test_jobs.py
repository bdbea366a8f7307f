"""Studies as jobs of a real head with token authentication, and the doctor's look at it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.ray_backend.jobs import ENDED
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
    verb,
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


def words(head: Head, name: str, *overrides: str) -> list[str]:
    """`submit` of a study of its own name."""
    named = [word for one in (f"name={name}", *overrides) for word in ("--set", one)]
    place = ["--storage", str(head.folder / "store"), "--address", head.dashboard]
    return ["submit", "tiny.yaml", *place, *named]


def submit(head: Head, name: str, *overrides: str) -> subprocess.Popen[str]:
    """`orchestrator submit`, in a process that can be interrupted."""
    return head.orchestrator(*words(head, name, *overrides), "--json")


def told(head: Head, *arguments: str, **variables: str) -> Any:
    """What a client's verb ends with, in this process."""
    with mock.patch.dict(os.environ, head.variables | variables):
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)
        return verb(head.folder, *arguments, check=False)


def happened(head: Head, name: str) -> list[dict[str, Any]]:
    """The journal of a study that was handed in."""
    return events(head.folder / "store", name)


def log_of(head: Head, name: str) -> str:
    """The log of its drivers, from the storage."""
    return "\n".join(told(head, "logs", name, "--storage", str(head.folder / "store"))["log"])


def client(head: Head) -> Any:
    """Ray's own client of jobs: the `ray job` commands say the same to the head."""
    from ray.job_submission import JobSubmissionClient

    headers = {"Authorization": f"Bearer {head.variables['RAY_AUTH_TOKEN']}"}
    return JobSubmissionClient(head.dashboard, headers=headers)


def ended(head: Head, job: str) -> str:
    """The status with which a job has ended."""
    jobs, deadline = client(head), time.monotonic() + PATIENCE_SECONDS
    while (status := str(jobs.get_job_status(job).value)) not in ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return status


def test_jobs_of_ray_job_submit_and_orchestrator_submit_end_as_their_studies(head: Head) -> None:
    """The first from this repository, as the documentation says, and another at the same time."""
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
    check_refused(head)
    out, _ = plain.communicate(timeout=PATIENCE_SECONDS)
    assert plain.returncode == 0, out
    assert "succeeded" in out
    before = happened(head, "plain")
    assert before[-1]["kind"] == "published"
    text = log_of(head, "plain")
    assert "(RAY_ADDRESS)" in text
    assert "writing report" in text
    done = told(head, *words(head, "plain"))  # finds all of it done
    assert (done["exit_code"], done["status"]) == (0, "SUCCEEDED"), done
    assert done["submission_id"] == "m2pt-plain-1"
    assert happened(head, "plain") == before
    check_no_token(head, out + done["stderr"])


def check_refused(head: Head) -> None:
    """The data is named by a place that this machine cannot judge: only the cluster can."""
    refused = told(head, *words(head, "nodata", "data.source=/nowhere/a.parquet"))
    assert (refused["exit_code"], refused["status"]) == (2, "FAILED")
    assert "/nowhere/a.parquet" in refused["stderr"]
    assert "its driver with exit code 2" in refused["stderr"]


def check_no_token(head: Head, said: str) -> None:
    """Neither what was said nor what was stored has the token."""
    token = head.variables["RAY_AUTH_TOKEN"]
    store = Store.open(str(head.folder / "store"))
    assert not any(token in store.get(one.key).decode(errors="ignore") for one in store.list())
    assert token not in said


def test_a_job_whose_supervisor_is_killed_goes_on_when_it_is_handed_in_again(head: Head) -> None:
    following = submit(head, "long", "training.epochs=5000")
    wait_until(following, lambda: len(select(happened(head, "long"), "epoch")) > 2)
    again = told(head, *words(head, "long", "training.epochs=5000"))
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
    assert "joining Ray at" in lost["stderr"]
    psutil.wait_procs([driver], timeout=60)
    before = happened(head, "long")
    following = submit(head, "long", "training.epochs=5000")
    wait_until(following, lambda: trains_on(head, before))
    assert happened(head, "long")[: len(before)] == before
    assert client(head).stop_job("m2pt-long-2")
    stopped = finish(following, check=False)
    assert (stopped["exit_code"], stopped["status"]) == (130, "STOPPED")
    check_no_token(head, lost["stderr"] + stopped["stderr"])


def trains_on(head: Head, before: list[dict[str, Any]]) -> bool:
    """Whether the long study's next gang has trained some epochs; before it was open, the driver
    may have told of some that lay in the storage."""
    kinds = [event["kind"] for event in happened(head, "long")[len(before) :]]
    return "gang_opened" in kinds and kinds[kinds.index("gang_opened") :].count("epoch") > 2


def test_a_stopped_job_has_drained(head: Head) -> None:
    """The one that was handed in again."""
    store = Store.open(str(head.folder / "store"))
    assert json.loads(store.get(layout.lease("long", 2)))["released"]
    last = happened(head, "long")[-1]
    assert (last["kind"], last["why"]) == ("study_stopped", "SIGTERM was received")
    check_no_epoch_was_trained_again(happened(head, "long"))
    assert "orchestrator: SIGTERM was received" in log_of(head, "long")


def test_ctrl_c_leaves_the_job_alone(head: Head) -> None:
    following = submit(head, "alone", "data.source=/nowhere/a.parquet")
    assert following.stderr is not None
    assert "job m2pt-alone-1 is handed in" in following.stderr.readline()
    os.kill(following.pid, signal.SIGINT)
    left = finish(following, check=False)
    assert left["exit_code"] == 130
    assert "goes on without this terminal" in left["stderr"]
    assert "orchestrator logs alone --storage" in left["stderr"]
    assert ended(head, "m2pt-alone-1") == "FAILED"  # as it would have: its data is nowhere


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_wrong_or_missing_token_is_refused(head: Head, token: str | None) -> None:
    variables = {"RAY_AUTH_TOKEN": token or "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}
    refused = told(head, *words(head, "wrong"), **variables)
    assert refused["exit_code"] == 5
    assert ("refuses the token" if token else "asks for a token") in refused["error"]
    assert "`ray get-auth-token`" in refused["error"]
    doctor = told(head, "doctor", "--address", head.dashboard, **variables)
    assert doctor["exit_code"] == 5
    (failed,) = (check for check in doctor["checks"] if check["state"] == "failed")
    assert failed["name"] == "Ray token"
    assert "`ray get-auth-token`" in failed["remedy"]
    assert not happened(head, "wrong")


@pytest.mark.parametrize("inside", [False, True])
def test_the_doctor_finds_the_head_well(head: Head, inside: bool) -> None:
    address = head.address if inside else head.dashboard
    words = ("doctor", "tiny.yaml", "--address", address)
    # inside, in a process of its own: it joins, as Ray lets a process do with one token alone
    found = finish(head.orchestrator(*words, "--json")) if inside else told(head, *words)
    assert found["exit_code"] == 0, found
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["Ray"] == states["Ray token"] == states["Ray resources"] == "ok"
    if inside:
        assert states["Ray job stop"] == "ok"
        assert "Ray shared memory" in states
    else:
        assert states["Ray version"] == "ok"
    assert json.dumps(found).count(head.variables["RAY_AUTH_TOKEN"]) == 0

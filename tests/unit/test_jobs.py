"""Jobs as values: their ids, what their end means, and what may run as one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import environment
from orchestrator.cli import main
from orchestrator.conduct.in_job import check_lasting, check_reachable_data
from orchestrator.errors import RequestError
from orchestrator.ray_backend import jobs
from orchestrator.ray_backend.dashboard import Answer, dashboard_address
from tests.studies import TINY, experiment

STORAGE = "s3://bucket/prefix"


def known(job: str, status: str = "SUCCEEDED", **of: str) -> jobs.Known:
    """A job of study `s` in STORAGE."""
    return jobs.Known(job, status, jobs.about(of.get("study", "s"), of.get("storage", STORAGE)))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], "m2pt-s-1"),
        ([known("m2pt-s-1"), known("m2pt-s-3", "FAILED")], "m2pt-s-4"),
        (
            [known("m2pt-s-2-1", study="s-2"), known("raysubmit_x", "RUNNING", study="t")],
            "m2pt-s-1",
        ),
        ([known("m2pt-s-1", "RUNNING", storage="s3://other")], "m2pt-s-2"),
    ],
)
def test_a_job_is_named_by_its_study_and_a_number(there: list[jobs.Known], expected: str) -> None:
    assert jobs.next_id("s", STORAGE, there, None) == expected


@pytest.mark.parametrize(
    ("there", "asked", "said"),
    [
        ([known("mine", "PENDING")], None, "already running, as job mine"),
        ([known("m2pt-s-1", "RUNNING")], "other", "ray job stop m2pt-s-1"),
        ([known("taken", "FAILED")], "taken", "knows a job of this id already"),
        ([], "a b", "letters, digits"),
    ],
)
def test_a_second_job_of_a_running_study_is_refused(
    there: list[jobs.Known], asked: str | None, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        jobs.next_id("s", STORAGE, there, asked)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (jobs.End("SUCCEEDED", 0), 0),
        (jobs.End("STOPPED", None), 130),
        (jobs.End("FAILED", 2), 2),
        (jobs.End("FAILED", 7), 7),
        (jobs.End("FAILED", 130), 130),
        (jobs.End("FAILED", 1), 1),
        (jobs.End("FAILED", -9), 5),
        (jobs.End("FAILED", 137), 5),
        (jobs.End("FAILED", None, "the runtime env could not be set up"), 5),
    ],
)
def test_a_job_ends_as_its_study(end: jobs.End, code: int) -> None:
    assert end.exit_code == code


def test_nothing_of_a_study_may_lie_in_the_jobs_own_folder(tmp_path: Path) -> None:
    check_lasting(experiment(TINY, tmp_path))
    check_lasting(experiment(TINY, tmp_path, "storage=s3://bucket/x", "tracking=http://host:5000"))
    with pytest.raises(RequestError, match=r"storage: '\./m2pt-studies' is relative"):
        check_lasting(experiment(TINY, tmp_path, "storage=./m2pt-studies"))
    with pytest.raises(RequestError, match=r"tracking: 'sqlite:///mlflow\.db' is relative"):
        check_lasting(experiment(TINY, tmp_path, "tracking=sqlite:///mlflow.db"))


def test_data_and_weights_beside_the_file_are_refused(tmp_path: Path) -> None:
    check_reachable_data(experiment(TINY, tmp_path, "data.source=/data/train.parquet"))
    source = "auxiliaries.a={pretrain: {data: {source: ../b.parquet}, tokenizer: {patch: 4}}}"
    near = ("data.source=train.parquet", "auxiliaries={b: {weights: w.safetensors}}", source)
    with pytest.raises(RequestError) as refused:
        check_reachable_data(experiment(TINY, tmp_path, *near))
    for named in ("data.source: 'train", "b.weights: 'w.s", "a.pretrain.data.source: '../b"):
        assert named in str(refused.value)


def test_a_job_with_a_relative_storage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    said = '{"metadata": {"job_submission_id": "m2pt-tiny-1"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", said)
    assert environment.ray_job() == "m2pt-tiny-1"
    assert main(["search", "tiny.yaml"]) == 2
    assert "storage: './m2pt-studies' is relative" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("said", ["", "{", "{}", '{"metadata": null}', "[]"])
def test_outside_of_a_job_there_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", said)
    assert environment.ray_job() is None


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ("http://head:8265/", {}, "http://head:8265"),
        ("http://head:1", {"RAY_ADDRESS": "http://other:2"}, "http://head:1"),
        (
            None,
            {"RAY_API_SERVER_ADDRESS": "https://h", "RAY_ADDRESS": "10.0.0.1:6379"},
            "https://h",
        ),
        (None, {"RAY_ADDRESS": "http://other:2"}, "http://other:2"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_where_jobs_are_handed_in(
    given: str | None,
    variables: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dashboard_address(given) == expected


@pytest.mark.parametrize("address", ["head:6379", "auto", "ray://head:10001", "http://u:p@head:1"])
def test_jobs_are_not_handed_in_elsewhere(address: str) -> None:
    with pytest.raises(RequestError) as refused:
        dashboard_address(address)
    assert ":p@" not in str(refused.value)


class Tails:
    """A client whose connections break: each gives the output from its beginning."""

    def __init__(self, *connections: list[str]) -> None:
        self.connections = list(connections)

    async def tail_job_logs(self, job: str) -> Any:
        """As Ray's."""
        for text in self.connections.pop(0) if self.connections else []:
            yield text
        if self.connections:
            raise RuntimeError("the connection was closed")


def test_output_is_passed_on_once_over_broken_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([*["RUNNING"] * 3, "FAILED"])
    answers: Iterator[Answer] = (
        Answer(200, {"status": state, "driver_exit_code": 6, "message": "x"}) for state in states
    )
    monkeypatch.setattr(jobs, "ask", lambda address, path: next(answers))
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.02)
    client = Tails(["one\n", "tw"], ["one\ntwo\n"], ["one\n", "two\n", "three\n"])
    output: list[str] = []
    follower = jobs._Follower("http://head", client, "job", output.append)
    assert asyncio.run(follower.to_the_end()).exit_code == 6
    assert "".join(output) == "one\ntwo\nthree\n"

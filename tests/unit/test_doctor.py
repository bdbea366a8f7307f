"""The doctor's table and code, what findings about Ray mean, and which Ray is meant."""

import io
import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import environment
from orchestrator.checks import Check
from orchestrator.cli import main
from orchestrator.commands.doctor import Area, exit_code, rows, show
from orchestrator.config.experiment import Resources
from orchestrator.environment import RayToken
from orchestrator.errors import ClusterError
from orchestrator.ray_backend import probe
from orchestrator.ray_backend.address import check_reachable, chosen
from orchestrator.ray_backend.capacity import Capacity, Node
from tests.studies import TINY

GOOD = Check("one", True, "works")
KNOWN = Check("two", True, "open to all", "close it", warning=True)
BAD = Check("three", False, "is [not] there", "make it")


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([[GOOD], [GOOD], [KNOWN], [GOOD]], 0),
        ([[BAD], [BAD], [GOOD], [BAD]], 5),
        ([[KNOWN], [GOOD, BAD], [BAD], [GOOD]], 3),
        ([[GOOD], [GOOD], [BAD], [BAD]], 4),
        ([[GOOD], [GOOD], [GOOD], [BAD]], 2),
    ],
)
def test_the_code_is_that_of_the_first_area_with_a_fault(
    found: list[list[Check]], code: int
) -> None:
    named = zip(("Ray", "storage", "MLflow", "file"), (5, 3, 4, 2), found, strict=True)
    assert exit_code([Area(*one) for one in named]) == code


def test_every_fault_is_shown_with_its_remedy() -> None:
    out = io.StringIO()
    areas = [Area("Ray", 5, [GOOD, KNOWN]), Area("storage", 3, [BAD])]
    show(areas, Console(file=out, width=100))
    text = out.getvalue()
    assert "✓ ok" in text
    assert "! warning" in text
    assert "✗ failed" in text
    assert "is [not] there" in text
    assert "→ make it" in text
    assert "→ close it" in text
    assert "1 failed, 1 to know of" in text
    assert [(row["area"], row["state"]) for row in rows(areas)] == [
        ("Ray", "ok"),
        ("Ray", "warning"),
        ("storage", "failed"),
    ]


def test_the_doctor_looks_at_this_machine_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert main(["doctor", "tiny.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert {row["area"] for row in found["checks"]} == {"Ray", "storage", "MLflow", "file"}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    many = ["--set", "resources.workers=9999", "--set", "data.source=none.parquet"]
    assert main(["doctor", "tiny.yaml", "--json", *many]) == 5
    failed = [
        row for row in json.loads(capsys.readouterr().out)["checks"] if row["state"] == "failed"
    ]
    assert [row["name"] for row in failed] == ["Ray resources", "data and weights"]
    assert "Lower resources.workers" in failed[0]["remedy"]
    assert main(["doctor", "nothing.yaml"]) == 2
    assert "beside it there is tiny.yaml" in " ".join(capsys.readouterr().out.split())


def test_a_head_that_is_away_is_a_fault_of_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
            (check,) = [c for c in probe.probe(address) if not c.ok]
            assert "answers at" in check.detail
            assert "`ray start --head`" in check.remedy
            assert "refused" in check.detail


def test_versions_must_be_the_same() -> None:
    assert probe.versions(("2.60.0", "3.11.9"), ("2.60.0", "3.11.2")).ok
    differ = probe.versions(("2.58.1", "3.12.1"), ("2.60.0", "3.11.2"))
    assert not differ.ok
    assert differ.detail == "Ray 2.58.1 there and 2.60.0 here; Python 3.12.1 there and 3.11.2 here"


def test_a_token_is_asked_for_missing_wrong_or_readable_by_others() -> None:
    missing = probe.refused("http://head", None)
    wrong = probe.refused("http://head", RayToken("RAY_AUTH_TOKEN", None, "secret-token"))
    assert not missing.ok
    assert "none is set here" in missing.detail
    assert not wrong.ok
    assert "refuses the token of RAY_AUTH_TOKEN" in wrong.detail
    assert "secret-token" not in wrong.detail + wrong.remedy + repr(wrong)
    assert not probe.door(open_to_all=False).warning
    assert probe.door(open_to_all=True).warning
    assert "run any code" in probe.door(open_to_all=True).detail
    assert not probe.token_file("token", 0o600).warning
    assert probe.token_file("token", 0o644).remedy == "chmod 600 token"


def test_the_token_is_found_as_ray_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.ray_token() is None
    for name, text in ((".ray/auth_token", "own"), ("named", "of the variable")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    own = environment.ray_token()
    assert own is not None
    assert (own.text, own.file) == ("own", tmp_path / ".ray/auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    named = environment.ray_token()
    assert named is not None
    assert named.text == "of the variable"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    variable = environment.ray_token()
    assert variable is not None
    assert (variable.text, variable.file) == ("variable", None)
    assert "variable" not in repr(variable).replace("RAY_AUTH_TOKEN", "")


def test_resources_are_compared_with_what_is_asked_for() -> None:
    two = Capacity("the cluster", (Node(2.0, 0.0),))
    assert probe.enough(two, Resources(concurrent_trials=2)) == Check(
        "Ray resources", True, "the cluster has 2 CPUs and 0 GPUs: 2 of 2 trials train at once"
    )
    fewer = probe.enough(two, Resources(concurrent_trials=4))
    assert fewer.warning
    assert "2 of 4 trials" in fewer.detail
    none = probe.enough(two, Resources(workers=4))
    assert not none.ok
    assert none.remedy.startswith("Lower resources.workers")


def test_small_shared_memory_and_a_short_stop_are_to_be_known() -> None:
    gib = 2**30
    (docker,) = probe.shared_memory("head", (64 * 2**20, 64 * 2**20))
    assert docker.warning
    assert "--shm-size" in docker.remedy
    (full,) = probe.shared_memory("head", (8 * gib, 1000))
    assert full.warning
    (good,) = probe.shared_memory("head", (8 * gib, 7 * gib))
    assert not good.warning
    assert not list(probe.shared_memory("head", None))
    (short,) = probe.stop_seconds(3)
    assert short.warning
    assert short.remedy == "start the head with RAY_JOB_STOP_WAIT_TIME_S=120"
    (long,) = probe.stop_seconds(120)
    assert not long.warning


@pytest.mark.parametrize(
    ("given", "named", "address", "told"),
    [
        (None, None, None, "starting Ray on this machine"),
        ("local", "10.0.0.1:6379", None, "starting Ray on this machine"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379", "joining Ray at 10.0.0.1:6379 (RAY_ADDRESS)"),
        ("auto", "10.0.0.1:6379", "auto", "joining Ray at auto (--address)"),
    ],
)
def test_a_study_joins_what_it_is_told_to(
    given: str | None, named: str | None, address: str | None, told: str
) -> None:
    where = chosen(given, named)
    assert (where.address, where.told) == (address, told)


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001"])
def test_a_study_does_not_join_where_jobs_are_handed_in(address: str) -> None:
    for given, named in ((address, None), (None, address)):
        with pytest.raises(ClusterError, match="orchestrator submit FILE"):
            chosen(given, named)


@pytest.mark.parametrize("address", ["head", "head:ray", ":6379", "127.0.0.1:99999"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ClusterError):
        check_reachable(address)

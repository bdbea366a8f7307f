"""The files for clusters keep their fields and our rules; each rule fails where it is broken."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check import CHECKS, FOLDER, check, main
from cluster.fields import COMPOSE_FILE, RAYJOB

ROOT = Path(__file__).parent.parent.parent
HEAD = "spec.rayClusterSpec.headGroupSpec.template.spec"
WORKER = "spec.rayClusterSpec.workerGroupSpecs.0.template.spec"


def faults(name: str, text: str) -> list[str]:
    return [str(fault) for fault in CHECKS[name](text)]


@cache
def as_json(name: str) -> str:
    return json.dumps(yaml.safe_load((FOLDER / name).read_text()))


def at(document: Any, path: str) -> tuple[Any, Any]:
    """What holds the last part of a dotted path, and that part."""
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in above:
        document = document[part]
    return document, last


def without(path: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        place, last = at(document, path)
        del place[last]

    return change


def given(path: str, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        place, last = at(document, path)
        place[last] = value

    return change


def test_the_files_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == {name: [] for name in CHECKS}
    assert set(CHECKS) == {p.name for p in FOLDER.iterdir() if p.suffix in (".yaml", ".json")} | {
        "Dockerfile"
    }
    assert main([]) == 0
    assert capsys.readouterr().out.count(": ok") == len(CHECKS)


def test_every_listed_field_has_its_documentation_and_is_used() -> None:
    for name, fields in (("rayjob.yaml", RAYJOB), ("compose.yaml", COMPOSE_FILE)):
        assert all(field.about.startswith("https://") for field in fields.values())
        text = (FOLDER / name).read_text() + (FOLDER / "compose.gpu.yaml").read_text()
        unused = [
            path
            for path in fields
            if (last := path.split(".")[-1]) not in ("*", "valueFrom") and f"{last}:" not in text
        ]
        assert not unused, name


BROKEN: dict[str, list[tuple[Callable[[Any], None], str]]] = {
    "ray-aws.yaml": [
        (without("provider"), r"Ray's schema: 'provider' is a required property"),
        (given("max_worker", 3), r"Ray's schema: .*'max_worker' was unexpected"),
        (given("max_workers", "two"), r"max_workers: Ray's schema: 'two' is not of type"),
        (given("docker.run_options", []), r"docker.run_options: every node must ask for the token"),
        (without("docker.head_run_options"), r"RAY_JOB_STOP_WAIT_TIME_S must be at least 120"),
        (
            given("docker.head_run_options", ["--env RAY_JOB_STOP_WAIT_TIME_S=3"]),
            r"docker.head_run_options: RAY_JOB_STOP_WAIT_TIME_S must be at least 120",
        ),
        (given("file_mounts", {}), r"file_mounts: no node would know the token"),
        (given("setup_commands", []), r"setup_commands: others on a node could read the token"),
        (
            given("file_mounts./home/ray/data", "./data"),
            r"file_mounts./home/ray/data: '\./data' would be copied to every node",
        ),
        (given("docker.image", "m2pt-orchestrator:latest"), r"docker.image: .* is not pinned"),
        (given("head_start_ray_commands", ["ray start --head"]), r"loopback alone"),
        (given("available_node_types.head.resources", {"GPU": 1}), r"the head runs no gang"),
        (given("available_node_types.gpu.resources", {"CPU": 8}), r"a worker without a GPU"),
        (given("available_node_types.gpu.min_workers", 0), r"refuses to start where its GPUs"),
        (without("available_node_types.gpu.node_config.IamInstanceProfile"), r"IamInstanceProfile"),
        (
            given("docker.run_options.1", "--env AWS_SECRET_ACCESS_KEY=abc"),
            r"docker.run_options\[1\]: a secret stands here in clear",
        ),
    ],
    "rayjob.yaml": [
        (without("spec.entrypoint"), r"spec.entrypoint: the field must be there.*#rayjobspec"),
        (without("spec.backoffLimit"), r"spec.backoffLimit: the field must be there"),
        (given("spec.backofLimit", 2), r"spec.backofLimit: no such field.* mean backoffLimit"),
        (given("spec.backoffLimit", "2"), r"spec.backoffLimit: a number is wanted, not str"),
        (given("spec.shutdownAfterJobFinishes", False), r"GPUs would be held"),
        (without("spec.rayClusterSpec.authOptions"), r"authOptions: the field must be there"),
        (given("spec.rayClusterSpec.authOptions.mode", "disabled"), r"must ask for a token"),
        (without(f"{HEAD}.containers.0.env"), r"RAY_JOB_STOP_WAIT_TIME_S must be at least 120"),
        (without(f"{HEAD}.serviceAccountName"), r"serviceAccountName: S3 is reached by"),
        (without(f"{WORKER}.containers.0.resources"), r"containers\[0\].resources: .* be there"),
        (
            given(f"{WORKER}.containers.0.resources.requests", {"cpu": "7"}),
            r"requests and limits must be equal",
        ),
        (
            given(f"{WORKER}.containers.0.resources", {"requests": {}, "limits": {}}),
            r"resources.limits: a worker without a GPU; add nvidia.com/gpu",
        ),
        (
            given(f"{HEAD}.containers.0.resources.limits", {"nvidia.com/gpu": "1"}),
            r"the head runs no gang",
        ),
        (given(f"{HEAD}.containers.0.image", "m2pt-orchestrator"), r"image: .* is not pinned"),
        (without(f"{HEAD}.containers.0.securityContext"), r"securityContext: .* must be there"),
        (
            given(f"{HEAD}.containers.0.env", [{"name": "AWS_REGION", "value": "x"}]),
            r"env: AWS_REGION is set here; leave AWS to the service account",
        ),
        (
            given(f"{HEAD}.containers.0.env", [{"name": "MLFLOW_TRACKING_PASSWORD", "value": "x"}]),
            r"env\[0\].value: a secret stands here in clear",
        ),
        (
            given("spec.runtimeEnvYAML", "working_dir: /"),
            r"runtimeEnvYAML.working_dir: the uploaded folder must be the one with the mounted",
        ),
        (
            given("spec.runtimeEnvYAML", "working_dir: /study\nenv_vars: {A: b}"),
            r"runtimeEnvYAML.env_vars: whoever may list jobs reads these",
        ),
    ],
    "compose.yaml": [
        (without("services"), r"services: the field must be there"),
        (given("services.ray.port", []), r"services.ray.port: no such field.* mean ports"),
        (given("services.ray.ports", ["8265:8265"]), r"write 127.0.0.1:8265:8265"),
        (without("services.ray.environment.RAY_AUTH_MODE"), r"the head must ask for a token"),
        (without("services.ray.secrets"), r"the token must come from a secret that is a file"),
        (without("services.ray.environment.RAY_JOB_STOP_WAIT_TIME_S"), r"at least 120"),
        (given("services.store.image", "chrislusf/seaweedfs:latest"), r"is not pinned"),
        (
            given("services.store.environment.AWS_SECRET_ACCESS_KEY", "abc"),
            r"services.store.environment.AWS_SECRET_ACCESS_KEY: a secret stands here in clear",
        ),
        (
            given("services.mlflow.environment.BACKEND", "postgresql://user:word@db/mlflow"),
            r"services.mlflow.environment.BACKEND: a secret stands here in clear",
        ),
        (given("services.mlflow.command", ["mlflow", "server"]), r"--allowed-hosts must be there"),
        (given("services.mlflow.command.4", "--workers=4"), r"an SQLite file has one writer"),
        (given("services.mlflow.command.5", "--allowed-hosts=*"), r"any host name would be taken"),
        (given("services.mlflow.command.7", "--artifacts-destination=/x"), r"into the bucket"),
        (given("services.mlflow.command.1", "--disable-security-middleware"), r"switched off"),
    ],
    "iam-prefix.json": [
        (given("Statement.1.Action.0", "s3:*"), r"Statement\[1\].Action: s3:\* is not needed"),
        (without("Statement.1.Action.2"), r"s3:DeleteObject is not allowed"),
        (given("Statement.1.Resource.0", "arn:aws:s3:::BUCKET/*"), r"more than one prefix"),
        (given("Statement.1.Resource.0", "*"), r"more than one prefix"),
        (without("Statement.0.Condition"), r"s3:ListBucket is bound by no condition"),
    ],
    "iam-head.json": [
        (given("Statement.0.Action.0", "ec2:*"), r"ec2:\* is not needed"),
        (without("Statement.2.Condition"), r"ec2:TerminateInstances is bound by no condition"),
        (given("Statement.3.Resource.0", "arn:aws:iam::ACCOUNT:role/*"), r"more than one prefix"),
    ],
}
CASES = [(name, *case) for name, cases in BROKEN.items() for case in cases]


@pytest.mark.parametrize(
    ("name", "change", "said"), CASES, ids=[f"{name}-{said[:50]}" for name, _, said in CASES]
)
def test_what_is_broken_is_named(name: str, change: Callable[[Any], None], said: str) -> None:
    document = json.loads(as_json(name))  # what is shared by an anchor is apart now
    change(document)
    found = faults(name, json.dumps(document))  # JSON is YAML
    assert any(re.search(said, fault) for fault in found), found


@pytest.mark.parametrize(
    ("line", "other", "said"),
    [
        ("FROM python:3.11.14-slim-bookworm", "FROM python:3.11", "FROM: the base image"),
        ("FROM python:3.11.14-slim-bookworm", "FROM python:3.12.1", "FROM: the base image"),
        (" --constraint constraints.txt", "", "RUN: versions must be those of constraints.txt"),
        ("USER ray", "", "USER: the image would run as root"),
    ],
)
def test_the_image_is_checked(line: str, other: str, said: str) -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert line in text
    assert any(fault.startswith(said) for fault in faults("Dockerfile", text.replace(line, other)))


def test_no_secret_is_shown_in_a_fault() -> None:
    for name in ("rayjob.yaml", "compose.yaml"):
        text = (FOLDER / name).read_text() + "\nAWS_SECRET_ACCESS_KEY: canary\n"
        said = " ".join(faults(name, text))
        assert "in clear" in said
        assert "canary" not in said


def test_a_file_that_is_no_yaml_is_one_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of ray-aws\.yaml, .* is there"):
        check(tmp_path)
    assert main([str(tmp_path)]) == 2
    shutil.copy(FOLDER / "rayjob.yaml", tmp_path)
    (tmp_path / "compose.yaml").write_text("services: [")
    (tmp_path / "iam-head.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "rayjob.yaml: ok" in said
    assert said.count("the file cannot be read") == 2


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for name in ("ray-aws.yaml", "rayjob.yaml", "compose.yaml", "Dockerfile"):
        tags = set(re.findall(r"m2pt-orchestrator:(\S+)", (FOLDER / name).read_text()))
        assert tags == {project}, name
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]


def test_the_image_gets_all_that_it_copies() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    copied = {
        word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()
    }
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_the_job_of_rayjob_is_a_command_of_ours() -> None:
    from orchestrator.cli import _parser

    entrypoint = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())["spec"]["entrypoint"]
    program, words = entrypoint.split()[:3], entrypoint.split()[3:]
    assert program == ["python", "-m", "orchestrator"]
    parsed = _parser(words).parse_args(words)
    assert (parsed.verb, parsed.file) == ("search", "experiment.yaml")
    assert [one.partition("=")[0] for one in parsed.overrides] == ["storage", "tracking"]


def test_what_the_page_says_of_resources_is_valid() -> None:
    from orchestrator.config.io import parse_experiment

    page = (ROOT / "docs/cluster.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    parse_experiment(f"name: a\ndata: {{source: digits}}\n{text}", "docs/cluster.md")

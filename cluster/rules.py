"""What these files must keep beside their structure: our own rules, each one a function.

A rule takes a document and yields a `Fault` for each place that breaks it. Values are never shown
where they could be secrets.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cluster.structure import Fault

Document = Mapping[str, Any]
STOP_SECONDS = 120
"""A stopped study drains: its trials end at their next checkpoint. Ray's own default is 3."""
GPU = "nvidia.com/gpu"

_TOKENS = "https://docs.ray.io/en/latest/ray-security/token-auth.html"
_KUBERAY_TOKENS = "https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/kuberay-auth.html"
_JOBS = "https://docs.ray.io/en/latest/cluster/running-applications/job-submission/index.html"
_RUNTIME = "https://docs.ray.io/en/latest/ray-core/handling-dependencies.html"
_GPUS = "https://kubernetes.io/docs/tasks/manage-gpus/scheduling-gpus/"
_PORTS = "https://docs.docker.com/reference/compose-file/services/#ports"
_MLFLOW = "https://mlflow.org/docs/latest/self-hosting/security/network/"
_PROFILES = "https://docs.ray.io/en/latest/cluster/vms/user-guides/launching-clusters/aws.html"


def launcher_faults(document: Document) -> Iterator[Fault]:
    """Our rules for the file of Ray's cluster launcher."""
    docker = document.get("docker", {})
    everywhere = " ".join(map(str, docker.get("run_options", [])))
    if "RAY_AUTH_MODE=token" not in everywhere.split():
        remedy = "add --env RAY_AUTH_MODE=token"
        yield Fault("docker.run_options", "every node must ask for the token", remedy, _TOKENS)
    mounts = document.get("file_mounts", {})
    token = next((path for path in mounts if path.endswith("/.ray/auth_token")), None)
    if token is None:
        remedy = "mount ~/.ray/auth_token of this machine"
        yield Fault("file_mounts", "no node would know the token", remedy, _TOKENS)
    elif not any(
        "chmod 600" in c and "auth_token" in c for c in document.get("setup_commands", [])
    ):
        remedy = "add chmod 600 ~/.ray/auth_token"
        yield Fault("setup_commands", "others on a node could read the token", remedy, _TOKENS)
    for path, source in mounts.items():
        if not str(source).startswith("~/."):
            rule = (
                f"{source!r} would be copied to every node: source and data do not travel this way"
            )
            yield Fault(f"file_mounts.{path}", rule, "`orchestrator submit` sends the source")
    head = " ".join(map(str, docker.get("head_run_options", [])))
    yield from _stop_wait(
        "docker.head_run_options", re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\S+)", head)
    )
    starts = " ".join(document.get("head_start_ray_commands", []))
    if "--dashboard-host=127.0.0.1" not in starts:
        rule = "the dashboard, which takes jobs, must listen on the head's loopback alone"
        yield Fault("head_start_ray_commands", rule, "add --dashboard-host=127.0.0.1", _TOKENS)
    yield from _node_faults(document)


def _node_faults(document: Document) -> Iterator[Fault]:
    head = document.get("head_node_type")
    kinds = document.get("available_node_types", {})
    for name, kind in kinds.items():
        place = f"available_node_types.{name}"
        gpus = kind.get("resources", {}).get("GPU", 0)
        if name == head and gpus:
            yield Fault(f"{place}.resources.GPU", "the head runs no gang", "set it to 0")
        if name != head and not gpus:
            yield Fault(f"{place}.resources.GPU", "a worker without a GPU", "say how many it has")
        if name != head and kind.get("min_workers") != kind.get("max_workers"):
            rule = "a study refuses to start where its GPUs are not there"
            yield Fault(f"{place}.min_workers", rule, "set it to max_workers")
        if "IamInstanceProfile" not in kind.get("node_config", {}):
            rule = (
                "S3 is reached by the instance profile's role, and Ray's own may do anything there"
            )
            yield Fault(f"{place}.node_config.IamInstanceProfile", rule, "name one", _PROFILES)


def rayjob_faults(document: Document) -> Iterator[Fault]:
    """Our rules for the KubeRay job."""
    spec = document.get("spec", {})
    cluster = spec.get("rayClusterSpec", {})
    place = "spec.rayClusterSpec"
    if cluster.get("authOptions", {}).get("mode") != "token":
        rule = "the cluster must ask for a token"
        yield Fault(f"{place}.authOptions.mode", rule, "set it to token", _KUBERAY_TOKENS)
    if spec.get("shutdownAfterJobFinishes") is not True:
        rule = "GPUs would be held after the study's end"
        yield Fault("spec.shutdownAfterJobFinishes", rule, "set it to true", _JOBS)
    yield from _package_faults(spec)
    head = cluster.get("headGroupSpec", {})
    waits = [
        str(entry.get("value", ""))
        for container in _containers(head)
        for entry in container.get("env", [])
        if entry.get("name") == "RAY_JOB_STOP_WAIT_TIME_S"
    ]
    yield from _stop_wait(f"{place}.headGroupSpec.template.spec.containers[0].env", waits)
    groups = [("headGroupSpec", head, False)]
    for number, group in enumerate(cluster.get("workerGroupSpecs", [])):
        groups.append((f"workerGroupSpecs[{number}]", group, True))
    for name, group, wants_gpu in groups:
        yield from _group_faults(f"{place}.{name}.template.spec", group, wants_gpu=wants_gpu)


def _package_faults(spec: Document) -> Iterator[Fault]:
    """What is uploaded is the experiment alone, and no environment travels with it."""
    runtime = yaml.safe_load(spec.get("runtimeEnvYAML") or "") or {}
    if "env_vars" in runtime:
        rule = "whoever may list jobs reads these in clear"
        remedy = "use envFrom of the containers"
        yield Fault("spec.runtimeEnvYAML.env_vars", rule, remedy, _RUNTIME)
    folder = runtime.get("working_dir", "")
    mounted = [
        mount["mountPath"]
        for container in _containers({"template": spec.get("submitterPodTemplate", {})})
        for mount in container.get("volumeMounts", [])
    ]
    if not any(path.startswith(f"{folder}/") for path in mounted) or not folder:
        rule = "the uploaded folder must be the one with the mounted experiment, and nothing else"
        yield Fault("spec.runtimeEnvYAML.working_dir", rule, "mount it there", _RUNTIME)


def _group_faults(place: str, group: Document, *, wants_gpu: bool) -> Iterator[Fault]:
    if not group.get("template", {}).get("spec", {}).get("serviceAccountName"):
        rule = "S3 is reached by the service account's role"
        yield Fault(f"{place}.serviceAccountName", rule, "name one")
    for number, container in enumerate(_containers(group)):
        here = f"{place}.containers[{number}]"
        resources = container.get("resources", {})
        asked, most = (resources.get(part, {}) for part in ("requests", "limits"))
        if asked != most:
            rule = (
                "requests and limits must be equal: Ray counts limits, Kubernetes places requests"
            )
            yield Fault(f"{here}.resources", rule, "make them equal", _GPUS)
        if wants_gpu and not int(most.get(GPU, 0)):
            yield Fault(f"{here}.resources.limits", "a worker without a GPU", f"add {GPU}", _GPUS)
        if not wants_gpu and GPU in most:
            yield Fault(f"{here}.resources.limits", "the head runs no gang", f"take {GPU} out")
        for entry in container.get("env", []):
            if str(entry.get("name", "")).startswith("AWS_"):
                rule = f"{entry['name']} is set here"
                remedy = "leave AWS to the service account and to the config map"
                yield Fault(f"{here}.env", rule, remedy)


def compose_faults(document: Document) -> Iterator[Fault]:
    """Our rules for the compose file."""
    services = document.get("services", {})
    for name, service in services.items():
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                rule = f"{port} would be reached from other machines"
                yield Fault(f"services.{name}.ports", rule, f"write 127.0.0.1:{port}", _PORTS)
    yield from _compose_ray(services.get("ray", {}), document.get("secrets", {}))
    yield from _compose_mlflow(list(map(str, services.get("mlflow", {}).get("command", []))))


def _compose_ray(ray: Document, secrets: Document) -> Iterator[Fault]:
    environment = ray.get("environment", {})
    place = "services.ray.environment"
    if environment.get("RAY_AUTH_MODE") != "token":
        yield Fault(f"{place}.RAY_AUTH_MODE", "the head must ask for a token", "token", _TOKENS)
    path = str(environment.get("RAY_AUTH_TOKEN_PATH", ""))
    name = path.removeprefix("/run/secrets/")
    if name not in ray.get("secrets", []) or "file" not in secrets.get(name, {}):
        rule = "the token must come from a secret that is a file"
        yield Fault(f"{place}.RAY_AUTH_TOKEN_PATH", rule, "name it under secrets", _TOKENS)
    wait = environment.get("RAY_JOB_STOP_WAIT_TIME_S")
    yield from _stop_wait(place, [] if wait is None else [str(wait)])


def _compose_mlflow(command: list[str]) -> Iterator[Fault]:
    place = "services.mlflow.command"
    given = dict(word.partition("=")[::2] for word in command)
    for option in ("--host", "--allowed-hosts", "--artifacts-destination"):
        if option not in given:
            yield Fault(place, f"{option} must be there", "add it", _MLFLOW)
    if "*" in given.get("--allowed-hosts", "").split(","):
        yield Fault(place, "any host name would be taken", "name the hosts", _MLFLOW)
    if given.get("--workers") != "1":
        rule = "an SQLite file has one writer"
        yield Fault(place, rule, "add --workers=1, or use PostgreSQL", _MLFLOW)
    if not given.get("--artifacts-destination", "s3://").startswith("s3://"):
        yield Fault(place, "files belong into the bucket", "name an s3:// address", _MLFLOW)
    if "--disable-security-middleware" in given:
        yield Fault(place, "its protection is switched off", "take the option out", _MLFLOW)


def _stop_wait(place: str, found: list[str]) -> Iterator[Fault]:
    seconds = int(found[0]) if found and found[0].isdigit() else 0
    if seconds < STOP_SECONDS:
        rule = (
            f"RAY_JOB_STOP_WAIT_TIME_S must be at least {STOP_SECONDS}, so that a study can drain"
        )
        yield Fault(place, rule, f"set it to {STOP_SECONDS} or more", _JOBS)


def _containers(group: Document) -> list[Document]:
    spec = group.get("template", {}).get("spec", {})
    return [entry for entry in spec.get("containers", []) if isinstance(entry, dict)]

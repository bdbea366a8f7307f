"""The fields that the files for KubeRay and Docker Compose use, each with its documentation.

A path is written with dots; `[]` stands for the entries of a list, `*` for names that are free.
A kind is text, number, flag, map, list or free (anything below it is its owner's own); "!" marks
a field that must be there whenever what it lies in is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

Kind = Literal["text", "number", "flag", "map", "list", "free"]
KUBERAY = "https://ray-project.github.io/kuberay/reference/api/"
POD = "https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/"
QUANTITIES = "https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/"
COMPOSE = "https://docs.docker.com/reference/compose-file/"
SERVICES = f"{COMPOSE}services/"


@dataclass(frozen=True)
class Field:
    """One field of a file: of which kind, whether it must be there, and where it is described."""

    kind: Kind
    required: bool
    about: str


def _below(place: str, about: str, kinds: Mapping[str, str]) -> dict[str, Field]:
    """The fields of one place, by their whole paths."""
    found = {}
    for name, text in kinds.items():
        kind = text.rstrip("!")
        assert kind in get_args(Kind), f"{place}.{name}: {kind}"
        path = f"{place}.{name}" if place else name
        found[path] = Field(cast(Kind, kind), text.endswith("!"), about)
    return found


def _container(place: str) -> dict[str, Field]:
    about = f"{POD}#Container"
    return {
        **_below(
            place,
            about,
            {
                "name": "text!",
                "image": "text!",
                "env": "list",
                "envFrom": "list",
                "ports": "list",
                "resources": "map!",
                "securityContext": "map!",
                "volumeMounts": "list",
            },
        ),
        **_below(
            f"{place}.env[]",
            f"{POD}#environment-variables",
            {"name": "text!", "value": "text", "valueFrom": "free"},
        ),
        **_below(
            f"{place}.envFrom[]",
            f"{POD}#environment-variables",
            {"configMapRef": "free", "secretRef": "free"},
        ),
        **_below(f"{place}.ports[]", f"{POD}#ports", {"containerPort": "number!", "name": "text"}),
        **_below(f"{place}.resources", QUANTITIES, {"requests": "free!", "limits": "free!"}),
        **_below(
            f"{place}.securityContext",
            f"{POD}#security-context-1",
            {"allowPrivilegeEscalation": "flag!", "capabilities": "free!"},
        ),
        **_below(
            f"{place}.volumeMounts[]",
            f"{POD}#volumes-1",
            {"name": "text!", "mountPath": "text!", "subPath": "text"},
        ),
    }


def _pod(template: str) -> dict[str, Field]:
    place = f"{template}.spec"
    return {
        **_below(template, f"{POD}#Pod", {"spec": "map!"}),
        **_below(
            place,
            f"{POD}#PodSpec",
            {
                "restartPolicy": "text",
                "serviceAccountName": "text",
                "terminationGracePeriodSeconds": "number",
                "securityContext": "map!",
                "tolerations": "list",
                "containers": "list!",
                "volumes": "list",
            },
        ),
        **_below(
            f"{place}.securityContext",
            f"{POD}#security-context",
            {
                "runAsNonRoot": "flag!",
                "runAsUser": "number",
                "fsGroup": "number",
                "seccompProfile": "free!",
            },
        ),
        **_below(
            f"{place}.tolerations[]",
            f"{POD}#scheduling",
            {"key": "text!", "operator": "text!", "effect": "text"},
        ),
        **_below(f"{place}.volumes[]", f"{POD}#volumes", {"name": "text!", "configMap": "free"}),
        **_container(f"{place}.containers[]"),
    }


_CLUSTER = "spec.rayClusterSpec"
RAYJOB: dict[str, Field] = {
    **_below(
        "",
        f"{KUBERAY}#rayjob",
        {"apiVersion": "text!", "kind": "text!", "metadata": "map!", "spec": "map!"},
    ),
    **_below("metadata", f"{KUBERAY}#rayjob", {"name": "text!"}),
    **_below(
        "spec",
        f"{KUBERAY}#rayjobspec",
        {
            "entrypoint": "text!",
            "runtimeEnvYAML": "text!",
            "submissionMode": "text!",
            "backoffLimit": "number!",
            "activeDeadlineSeconds": "number!",
            "shutdownAfterJobFinishes": "flag!",
            "ttlSecondsAfterFinished": "number",
            "submitterPodTemplate": "map",
            "rayClusterSpec": "map!",
        },
    ),
    **_pod("spec.submitterPodTemplate"),
    **_below(
        _CLUSTER,
        f"{KUBERAY}#rayclusterspec",
        {
            "rayVersion": "text!",
            "authOptions": "map!",
            "headGroupSpec": "map!",
            "workerGroupSpecs": "list!",
        },
    ),
    **_below(f"{_CLUSTER}.authOptions", f"{KUBERAY}#authoptions", {"mode": "text!"}),
    **_below(
        f"{_CLUSTER}.headGroupSpec",
        f"{KUBERAY}#headgroupspec",
        {"rayStartParams": "free!", "template": "map!"},
    ),
    **_pod(f"{_CLUSTER}.headGroupSpec.template"),
    **_below(
        f"{_CLUSTER}.workerGroupSpecs[]",
        f"{KUBERAY}#workergroupspec",
        {
            "groupName": "text!",
            "replicas": "number!",
            "minReplicas": "number!",
            "maxReplicas": "number!",
            "rayStartParams": "free",
            "template": "map!",
        },
    ),
    **_pod(f"{_CLUSTER}.workerGroupSpecs[].template"),
}

_SERVICE = "services.*"
COMPOSE_FILE: dict[str, Field] = {
    **_below("", COMPOSE, {"name": "text", "services": "map!", "volumes": "map", "secrets": "map"}),
    **_below("", f"{COMPOSE}extension/", {"x-image": "free", "x-store": "free"}),
    **_below("services", SERVICES, {"*": "map"}),
    **_below("volumes", f"{COMPOSE}volumes/", {"*": "free"}),
    **_below("secrets", f"{COMPOSE}secrets/", {"*": "map"}),
    **_below("secrets.*", f"{COMPOSE}secrets/", {"file": "text!"}),
    **{
        f"{_SERVICE}.{name}": Field(kind, False, f"{SERVICES}#{name}")
        for name, kind in cast(
            Mapping[str, Kind],
            {
                "image": "text",
                "build": "map",
                "command": "list",
                "environment": "map",
                "ports": "list",
                "volumes": "list",
                "secrets": "list",
                "depends_on": "free",
                "healthcheck": "map",
                "restart": "text",
                "shm_size": "text",
                "init": "flag",
                "stop_grace_period": "text",
                "deploy": "map",
            },
        ).items()
    },
    **_below(
        f"{_SERVICE}.build",
        f"{COMPOSE}build/",
        {"context": "text!", "dockerfile": "text!", "args": "free"},
    ),
    **_below(f"{_SERVICE}.environment", f"{SERVICES}#environment", {"*": "text"}),
    **_below(
        f"{_SERVICE}.healthcheck",
        f"{SERVICES}#healthcheck",
        {
            "test": "list!",
            "interval": "text",
            "timeout": "text",
            "retries": "number",
            "start_period": "text",
        },
    ),
    **_below(f"{_SERVICE}.deploy", f"{COMPOSE}deploy/#resources", {"resources": "map!"}),
    **_below(
        f"{_SERVICE}.deploy.resources", f"{COMPOSE}deploy/#resources", {"reservations": "map!"}
    ),
    **_below(
        f"{_SERVICE}.deploy.resources.reservations",
        f"{COMPOSE}deploy/#devices",
        {"devices": "list!"},
    ),
    **_below(
        f"{_SERVICE}.deploy.resources.reservations.devices[]",
        f"{COMPOSE}deploy/#devices",
        {"driver": "text!", "count": "text!", "capabilities": "list!"},
    ),
}

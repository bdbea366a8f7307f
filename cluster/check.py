"""Check the files of this folder: `python -m cluster.check [FOLDER]`.

The launcher's file is held against the schema in the ray package, the others against the fields
listed in `cluster.fields`; all of them against our own rules. Nothing is contacted, Ray is not
imported.
"""

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.access import HEAD_ACTIONS, PREFIX_ACTIONS, policy_faults
from cluster.fields import COMPOSE_FILE, RAYJOB, Field
from cluster.rules import compose_faults, launcher_faults, rayjob_faults
from cluster.structure import Fault, structure_faults
from cluster.values import floating_images, literal_secrets

FOLDER = Path(__file__).parent
_LAUNCHER = "https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html"
_DOCKERFILE = "https://docs.docker.com/reference/dockerfile/"

Check = Callable[[str], Iterator[Fault]]
"""Looks at a file's text."""


def launcher(text: str) -> Iterator[Fault]:
    """A file of Ray's cluster launcher: the schema of the ray package, then our rules."""
    document = _load(text)
    yield from _general(document)
    faults = list(_schema_faults(document))
    yield from faults or launcher_faults(document)


def rayjob(text: str) -> Iterator[Fault]:
    """A KubeRay job: the listed fields, then our rules."""
    yield from _listed(text, RAYJOB, rayjob_faults)


def compose(text: str) -> Iterator[Fault]:
    """The compose file: the listed fields, then our rules."""
    yield from _listed(text, COMPOSE_FILE, compose_faults)


def overlay(text: str) -> Iterator[Fault]:
    """A compose file that only adds to another."""
    yield from _listed(text, COMPOSE_FILE, lambda _: iter(()))


def dockerfile(text: str) -> Iterator[Fault]:
    """The image: pinned, of Python 3.11, from constraints.txt, not run by root."""
    base = re.search(r"^FROM (\S+)", text, re.MULTILINE)
    if base is None or not re.search(r":3\.11\.\d+", base[1]):
        rule = "the base image must be pinned, and of Python 3.11"
        yield Fault("FROM", rule, "name python:3.11.N and a flavour", f"{_DOCKERFILE}#from")
    if "--constraint constraints.txt" not in text:
        rule = "versions must be those of constraints.txt"
        yield Fault("RUN", rule, "add --constraint constraints.txt", f"{_DOCKERFILE}#run")
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    if not users or users[-1] in ("root", "0"):
        yield Fault("USER", "the image would run as root", "name another", f"{_DOCKERFILE}#user")


def prefix_policy(text: str) -> Iterator[Fault]:
    """What every node may do in S3."""
    yield from policy_faults(json.loads(text), PREFIX_ACTIONS)


def head_policy(text: str) -> Iterator[Fault]:
    """What the launcher's head may do beside that."""
    yield from policy_faults(json.loads(text), HEAD_ACTIONS)


CHECKS: dict[str, Check] = {
    "ray-aws.yaml": launcher,
    "rayjob.yaml": rayjob,
    "compose.yaml": compose,
    "compose.gpu.yaml": overlay,
    "Dockerfile": dockerfile,
    "iam-prefix.json": prefix_policy,
    "iam-head.json": head_policy,
}


def check(folder: Path = FOLDER) -> dict[str, list[Fault]]:
    """The faults of every file that lies in `folder`, by its name.

    Raises:
        FileNotFoundError: none of the files is there.
    """
    found = {name: folder / name for name in CHECKS if (folder / name).is_file()}
    if not found:
        raise FileNotFoundError(f"{folder}: none of {', '.join(CHECKS)} is there")
    return {name: _faults(CHECKS[name], path.read_text()) for name, path in found.items()}


def _faults(check: Check, text: str) -> list[Fault]:
    try:
        return list(check(text))
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        where = " ".join(str(error).split())
        return [Fault("", f"the file cannot be read: {where}", "mend its syntax")]


def _listed(
    text: str, fields: Mapping[str, Field], rules: Callable[[Any], Iterator[Fault]]
) -> Iterator[Fault]:
    """Rules are tried on a document of the right structure alone."""
    document = _load(text)
    yield from _general(document)
    faults = list(structure_faults(document, fields))
    yield from faults or rules(document)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _general(document: Any) -> Iterator[Fault]:
    yield from literal_secrets(document)
    yield from floating_images(document)


def _schema_faults(document: Any) -> Iterator[Fault]:
    import jsonschema  # comes with ray

    spec = importlib.util.find_spec("ray")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the schema of the launcher's file lies in the ray package")
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    for error in validator.iter_errors(document):
        place = ".".join(map(str, error.absolute_path))
        yield Fault(place, f"Ray's schema: {error.message}", "see the schema", _LAUNCHER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the faults; 0 without any, 1 with some, 2 where there is nothing to check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    try:
        found = check(parser.parse_args(arguments).folder)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for name, faults in found.items():
        print(f"{name}: {'ok' if not faults else f'{len(faults)} faults'}")
        for fault in faults:
            print(f"  {fault}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())

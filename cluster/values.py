"""What may stand in no file, whatever it is for: secrets in clear, images that float."""

import re
from collections.abc import Iterator
from typing import Any

from cluster.structure import Fault

_SECRET_NAME = re.compile(r"secret|password|passwd|token|access_key|api_?key|credential", re.I)
_NO_SECRET_NAME = re.compile(
    r"_(path|file|mode)$|^secret(Ref|KeyRef|Name)?s?$|^HttpTokens$|/", re.I
)
_SECRET_VALUE = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s:@$]+@"
)
_FROM_OUTSIDE = re.compile(r"\$\{\w+(:?[?-][^}]*)?\}")


def literal_secrets(document: Any) -> Iterator[Fault]:
    """No secret stands in a file: it comes from the environment, a file, a role or a reference."""
    for path, name, value in _texts(document, ""):
        named = _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name)
        if (named and value and not _FROM_OUTSIDE.fullmatch(value)) or _SECRET_VALUE.search(value):
            yield Fault(
                path,
                "a secret stands here in clear",
                "take it from the environment, a mounted file, a role or a secret reference",
            )


def floating_images(document: Any) -> Iterator[Fault]:
    """Every image has a tag of its own, or a digest: `latest` is another one tomorrow."""
    for path, name, value in _texts(document, ""):
        if name == "image" or name.endswith("_image"):
            tag = value.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in value and tag in ("", "latest"):
                yield Fault(path, f"the image {value!r} is not pinned", "name a version's tag")


def _texts(value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Every text in a document: its path, the name it goes by, and itself.

    An entry {name: X, value: Y} of an environment, or X=Y of a list, goes by X.
    """
    if isinstance(value, dict):
        variable = value.get("name") if "value" in value else None
        for key, below in value.items():
            here = f"{path}.{key}" if path else str(key)
            name = str(variable) if key == "value" and variable else str(key)
            if isinstance(below, str | int | float):
                yield here, name, str(below)
            else:
                yield from _texts(below, here)
    elif isinstance(value, list):
        name = re.split(r"[.\[]", path)[-1]
        for number, below in enumerate(value):
            if isinstance(below, str):
                variable, _, assigned = below.rpartition(" ")[2].partition("=")  # --env NAME=VALUE
                yield f"{path}[{number}]", variable if assigned else name, assigned or below
            else:
                yield from _texts(below, f"{path}[{number}]")

"""A class map that a person wrote: which name has which label."""

import json
from pathlib import Path

from orchestrator.errors import RequestError


def read_classes(file: Path) -> tuple[str, ...]:
    """Class names in order: a line each, or JSON: a list, or an object from name to label.

    Raises RequestError.
    """
    rule = "a class name per line, or a JSON list of names, or an object from name to label"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--classes {file}: cannot be read ({error}); give {rule}") from error
    if not text.lstrip().startswith(("[", "{")):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        said = json.loads(text)
    except ValueError as error:
        raise RequestError(f"--classes {file}: no JSON ({error}); give {rule}") from error
    if isinstance(said, dict):
        if sorted(map(str, said.values())) != sorted(map(str, range(len(said)))):
            raise RequestError(f"--classes {file}: labels are 0 to {len(said) - 1}, each once")
        said = sorted(said, key=lambda name: int(said[name]))
    if not all(isinstance(name, str) for name in said):
        raise RequestError(f"--classes {file}: a name is no text; give {rule}")
    return tuple(said)

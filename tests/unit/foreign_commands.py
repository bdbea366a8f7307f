"""Commands in the docs that are not ours: nobody runs them, but what they name must be there."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TOOLS = (
    *("aws", "chmod", "docker", "eksctl", "export", "helm", "kubectl", "mkdir", "printf", "ray"),
    *("sed", "umask"),
)
WRITTEN = ("cluster/.env", "search_spaces/mine.yaml")
"""Files that the reader makes."""


def check_foreign(words: Sequence[str]) -> None:
    """Files of ours that a command names exist; a verb of Ray's command line is one."""
    for path in re.findall(r"\b(?:cluster|search_spaces)/[\w.-]+", " ".join(words)):
        assert path in WRITTEN or (ROOT / path).exists(), f"{path} is not there"
    if words[0] == "ray":
        assert words[1] in _verbs_of_ray(), f"ray has no verb {words[1]!r}"


def check_benchmark(words: Sequence[str]) -> None:
    """A benchmark exists, and takes the options that it is given."""
    source = (ROOT / words[1]).read_text()
    for option in (word for word in words[2:] if word.startswith("--")):
        assert f'"{option}"' in source, f"{words[1]} has no option {option}"


def _verbs_of_ray() -> set[str]:
    """Read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "scripts" / "scripts.py").read_text()
    found = re.findall(r'add_command\((\w+)(?:, name="([\w-]+)")?', source)
    return {(name or function).replace("_", "-") for function, name in found}

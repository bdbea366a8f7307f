"""The experiments that are shipped with the project, by name."""

import difflib
from pathlib import Path

_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The names of all shipped experiments, in order; those of the paper are paper/..."""
    files = (path.relative_to(_HERE) for path in _HERE.rglob("*.yaml"))
    return tuple(sorted(path.with_suffix("").as_posix() for path in files))


def find(name: str) -> Path:
    """The file of the shipped experiment `name`.

    Raises:
        LookupError: there is none; the message offers the nearest name.
    """
    if name in names():
        return _HERE / f"{name}.yaml"
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names()) or 'none'}"
    raise LookupError(f"no experiment {name!r} is shipped; {hint}")

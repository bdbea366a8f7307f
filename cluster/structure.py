"""Is a document built of the fields that are listed for it? And what a fault is."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.fields import Field, Kind

_OF_KIND: dict[Kind, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "flag": (bool,),
    "map": (dict,),
    "list": (list,),
    "free": (object,),
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a file, what to do, and where the field is documented."""

    path: str
    rule: str
    remedy: str
    about: str = ""

    def __str__(self) -> str:
        more = f" ({self.about})" if self.about else ""
        return f"{self.path}: {self.rule}; {self.remedy}{more}"


def structure_faults(document: Any, fields: Mapping[str, Field]) -> Iterator[Fault]:
    """Unknown fields, fields of another kind, and fields that are not there.

    Args:
        document: what a YAML file holds.
        fields: what it may hold, by path (see `cluster.fields`).
    """
    if not isinstance(document, dict):
        yield Fault("", f"the file holds a map, not {_shown(document)}", "start from the one here")
        return
    yield from _map_faults(document, ("", ""), fields)


def _map_faults(
    value: Mapping[str, Any], at: tuple[str, str], fields: Mapping[str, Field]
) -> Iterator[Fault]:
    """`at` is where the map lies: as in the file, and as in the list of fields."""
    real, listed = at
    known = {path.removeprefix(f"{listed}."): path for path in fields if _parent(path) == listed}
    if not listed:
        known = {path: path for path in fields if _parent(path) == ""}
    for name, path in known.items():
        if fields[path].required and name not in value:
            where = f"{real}.{name}".lstrip(".")
            yield Fault(where, "the field must be there", "add it", fields[path].about)
    for name, below in value.items():
        where = f"{real}.{name}".lstrip(".")
        path = known.get(name) or known.get("*", "")
        if not path:
            near = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {near[0]}?" if near else "take it out, or list it in fields.py"
            yield Fault(where, "no such field is listed", remedy)
            continue
        yield from _value_faults(below, (where, path), fields)


def _value_faults(value: Any, at: tuple[str, str], fields: Mapping[str, Field]) -> Iterator[Fault]:
    real, listed = at
    field = fields[listed]
    fits = isinstance(value, _OF_KIND[field.kind])
    if not fits or (isinstance(value, bool) and field.kind == "number"):
        rule = f"a {field.kind} is wanted, not {_shown(value)}"
        yield Fault(real, rule, "change it", field.about)
    elif field.kind == "map":
        yield from _map_faults(value, at, fields)
    elif field.kind == "list":
        for number, entry in enumerate(value):
            if isinstance(entry, dict):
                yield from _map_faults(entry, (f"{real}[{number}]", f"{listed}[]"), fields)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _shown(value: Any) -> str:
    """A value as an error may show it: not at all, where it could be a secret or long."""
    return "nothing" if value is None else type(value).__name__

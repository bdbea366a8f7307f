"""The nearest valid name, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint to append to a message: the nearest of `names`, else a few of them, else nothing."""
    known = list(dict.fromkeys(names))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if known and len(known) <= 8:
        return f"; there is {', '.join(map(repr, known))}"
    return ""

"""Formats of what is kept: each thing carries a number, and a release reads up to its own."""

from orchestrator.errors import StorageError


class WrongFormat(StorageError):
    """Something was written by a release that this one does not understand."""


def check_format(found: object, newest: int, shown: str, *, oldest: int = 1) -> None:
    """Raise unless this release reads format number `found` of what messages call `shown`.

    Raises WrongFormat with the remedy for a newer or older one, ValueError for what is no number.
    """
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"format is {found!r:.40}, no whole number")
    if found > newest:
        raise WrongFormat(
            f"{shown} has format {found}, this release reads up to {newest}: upgrade to the release"
            " that wrote it, or a later one"
        )
    if found < oldest:
        raise WrongFormat(
            f"{shown} has format {found}, this release reads {oldest} and later: go on with the"
            " release that wrote it, or begin anew under another name"
        )

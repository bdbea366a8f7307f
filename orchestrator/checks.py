"""What a look at one part of the surroundings found: the value that probes return."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was tried. `detail` says what was found, `remedy` what to do when not ok.

    `warning` marks what works but should be known; it is never a reason to refuse.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    warning: bool = False

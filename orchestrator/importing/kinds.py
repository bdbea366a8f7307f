"""What the kinds of data have in common: one file's bytes in, one sample's bytes out.

A kind is a frozen value that holds its options. `sample` is a pure function of a file's content and
a seed, so that a table can be made again byte for byte; it runs in several threads at once.
"""

import hashlib
from typing import Any, ClassVar, Protocol

from orchestrator.errors import RequestError

SAMPLE_BYTES = 256 * 1024 * 1024
"""A sample may have no more: a model would not take it either."""


DECODED_BYTES = 2**30
"""What one file may take in memory while it is decoded, as far as that is known beforehand."""
PIXELS = 2**27
"""Of one picture or frame: half as many again as Pillow warns of."""
FILE_BYTES = 2 * 2**30
"""Of one file: it is read as a whole."""


class Broken(Exception):
    """One file cannot be made a sample; the message is the reason, without the file's name."""


class Kind(Protocol):
    """Files of one modality, and how they become samples."""

    NAME: ClassVar[str]
    SUFFIXES: ClassVar[frozenset[str]]
    VERSION: ClassVar[int]
    """Raised whenever the same file would become other bytes: an import is then begun anew."""

    def declared(self) -> dict[str, Any]:
        """The `dataset` object of the Parquet contract, without its classes."""

    def sample(self, content: bytes, suffix: str, seed: int) -> bytes:
        """One row of the column `data`. Raises Broken, or whatever a library raises."""

    @property
    def typical_bytes(self) -> int:
        """About how long a row of the column `data` is: what parts are planned by."""


def seed_of(seed: int, path: str) -> int:
    """A seed of its own for each file, whatever the order in which files are read."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{path}".encode()).digest()[:8], "little")


def at_least(option: str, value: float, least: float) -> None:
    """Refuse an option below its least value. Raises RequestError."""
    if not value >= least:
        raise RequestError(f"{option}: {least} or more, but it is {value}")


def check_decoded(size: int) -> None:
    """Refuse, before it is decoded, what would fill the memory. Raises Broken."""
    if size > DECODED_BYTES:
        raise Broken(
            f"takes {size / 2**20:,.0f} MiB once decoded, and may take {DECODED_BYTES / 2**20:,.0f}"
        )


def check_pixels(width: int, height: int) -> None:
    """As `check_decoded`, of one picture or frame."""
    if width * height > PIXELS:
        raise Broken(
            f"{width:,} x {height:,} pixels, and at most {PIXELS / 1e6:,.0f} million are decoded"
        )


def check_sample_bytes(size: int, options: str) -> None:
    """Refuse samples that nothing could hold. Raises RequestError."""
    if size > SAMPLE_BYTES:
        raise RequestError(
            f"{options}: one sample would take {size / 2**20:,.0f} MiB, more than "
            f"{SAMPLE_BYTES / 2**20:.0f}; choose smaller ones"
        )

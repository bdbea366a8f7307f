"""What an import will do: which file becomes a row of which part. Pure functions of the listing."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import RequestError
from orchestrator.importing.folders import Item, class_map, read_contents
from orchestrator.importing.kinds import Kind, seed_of
from orchestrator.importing.splits import with_groups, with_splits
from orchestrator.storage.foreign import Listing

FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What a person asks for. Workers, skipping and restarting change no row."""

    kind: Kind
    source: str
    destination: str
    classes: tuple[str, ...] | None = None
    test_fraction: float | None = None
    group_by: str | None = None
    ignore: tuple[str, ...] = ()
    seed: int = 0
    part_bytes: int = 64 * 1024 * 1024
    skip_broken: int = 0
    workers: int | None = None
    """Threads; None: a few more than there are CPUs."""
    restart: bool = False

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--seed", self.seed, 0),
            ("--part-mib", self.part_bytes // 2**20, 1),
            ("--skip-broken", self.skip_broken, 0),
            ("--workers", 1 if self.workers is None else self.workers, 1),
        ):
            if value < least:
                raise RequestError(f"{option}: {least} or more, but it is {value}")


@dataclass(frozen=True)
class Plan:
    """Parts of files in the order of their rows. All files of one part are of one split."""

    declared: dict[str, Any]
    """The `dataset` object of the Parquet contract."""
    parts: tuple[tuple[Item, ...], ...]
    identity: dict[str, Any]
    """What must be the same for an import to go on: options and listing."""

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels."""
        return list(self.declared["classes"])

    @property
    def files(self) -> int:
        """How many files are read in all."""
        return sum(len(part) for part in self.parts)


def make_plan(request: Request, listing: Listing) -> Plan:
    """Training rows first, then test rows, each shuffled once by a seeded hash of their paths.

    Shuffled rows let a reader shuffle well with little memory, and a part without rows of the
    other split need not be read for it.

    Raises:
        RequestError: the listing or the options break a rule of `folders` or `splits`.
    """
    contents = read_contents(listing, request.kind, request.source, request.ignore)
    classes = class_map(contents, request.classes, request.source)
    grouped = with_groups(contents.items, request.group_by)
    items = with_splits(grouped, request.test_fraction, request.seed)
    ordered = sorted(items, key=lambda item: (seed_of(request.seed, item.path), item.path))
    rows = max(1, request.part_bytes // request.kind.typical_bytes)
    parts = tuple(
        part
        for split in ("train", "test")
        for part in _cut([item for item in ordered if item.split == split], rows)
    )
    declared = {**request.kind.declared(), "classes": list(classes)}
    if request.group_by is not None:
        declared["group"] = request.group_by
    return Plan(declared, parts, _identity(request, contents.items, classes))


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, for people; [] when they are the same."""
    said = []
    for key in sorted(before.keys() | now.keys()):
        was, is_now = before.get(key), now.get(key)
        if was != is_now and key != "listing":
            said.append(f"{key} was {_shown(was)} and is {_shown(is_now)}")
    if not said and before.get("listing") != now.get("listing"):
        said.append("a file's name, size or time of change is another")
    return said


def _cut(items: Sequence[Item], rows: int) -> Iterator[tuple[Item, ...]]:
    for first in range(0, len(items), rows):
        yield tuple(items[first : first + rows])


def _identity(request: Request, items: Sequence[Item], classes: Sequence[str]) -> dict[str, Any]:
    listing = hashlib.sha256()
    for item in items:
        file = item.file
        listing.update(json.dumps([file.path, file.size, file.changed_ns]).encode() + b"\n")
    options = {f"--{key.replace('_', '-')}": v for key, v in asdict_of(request.kind).items()}
    return {
        "format": FORMAT,
        "kind": request.kind.NAME,
        "reading": request.kind.VERSION,
        **options,
        "--classes": list(classes),
        "--test-fraction": request.test_fraction,
        "--group-by": request.group_by,
        "--seed": request.seed,
        "--part-mib": request.part_bytes / 2**20,
        "number of files": len(items),
        "listing": listing.hexdigest(),
    }


def asdict_of(kind: Kind) -> dict[str, Any]:
    """A kind's options by name."""
    return asdict(kind)  # type: ignore[call-overload,no-any-return]  # each kind is a dataclass


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

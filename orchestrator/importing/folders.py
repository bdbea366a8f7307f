"""What a listing means: which files are samples, of which class, of which split. Pure functions."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Literal

from orchestrator.errors import RequestError
from orchestrator.importing.kinds import Kind
from orchestrator.storage.foreign import ForeignFile, Listing

Split = Literal["train", "test"]

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What people call their split folders, in any case."""
_NEVER = ("Thumbs.db", "desktop.ini", "__MACOSX")
_SHOWN = 3


@dataclass(frozen=True)
class Item:
    """One file that becomes a row; `split` is None where no folder says it.

    Files of one `group` (students, recordings) are never held out one without the other.
    """

    file: ForeignFile
    class_name: str
    split: Split | None
    group: str | None = None

    @property
    def path(self) -> str:
        """From the source."""
        return self.file.path

    @property
    def id(self) -> str:
        """The path, spelled in one way whatever system wrote its accents."""
        return unicodedata.normalize("NFC", self.file.path)


@dataclass(frozen=True)
class Contents:
    """What lies in a source: files with their classes, sorted by path; all class folders."""

    items: tuple[Item, ...]
    folders: frozenset[str]


def read_contents(listing: Listing, kind: Kind, source: str, ignore: Sequence[str]) -> Contents:
    """Sort a listing into splits and classes.

    `SOURCE/class/file` or `SOURCE/split/class/file`, files at any depth below their class. The
    first folders are splits where each is named train, val or test, or as `_SPLITS` has it, and
    train is among them. val is the test split where there is no test, as ImageNet has it, and
    belongs to the training rows where there is one: a study holds out its own validation rows from
    those. Where train is alone, test rows are drawn from it.

    Raises:
        RequestError: no files, a file of another suffix or outside of the class folders, a class
            folder without files, or two names that are one.
    """
    files = [file for file in listing.files if not _ignored(file.path, ignore)]
    folders = [path for path in listing.folders if not _ignored(path, ignore)]
    if not files:
        raise RequestError(
            f"SOURCE {source}: holds no files; give the folder that holds the class folders"
        )
    _check_suffixes(files, kind, source)
    splits = _split_folders(files, folders)
    depth = 2 if splits else 1
    _check_places(files, depth, source)
    items = tuple(
        Item(file, parts[depth - 1], splits[parts[0]] if splits else None)
        for file in sorted(files, key=lambda file: file.path)
        for parts in (file.path.split("/"),)
    )
    _check_ids(items, source)
    classes = _class_folders(folders, depth)
    if empty := sorted(classes - {item.class_name for item in items}):
        raise RequestError(
            f"SOURCE {source}: no file in the class folder {_some(empty)}; remove the folder, or "
            f"leave it out with --ignore {empty[0]!r}"
        )
    return Contents(items, frozenset(item.class_name for item in items))


def class_map(contents: Contents, given: Sequence[str] | None, source: str) -> tuple[str, ...]:
    """Class names in the order of their labels: sorted, or as `given`. Raises RequestError."""
    if given is None:
        names = tuple(sorted(contents.folders))
    else:
        names = tuple(given)
        _check_given(names, contents.folders, source)
    if len(names) < 2:
        raise RequestError(
            f"SOURCE {source}: two class folders or more, but there is {_some(names)}; give the "
            "folder above the class folders"
        )
    trained = {item.class_name for item in contents.items if item.split != "test"}
    if untrained := [name for name in names if name not in trained]:
        raise RequestError(
            f"SOURCE {source}: class {_some(untrained)} has files in the test split alone; nothing "
            "could be learned of it: leave it out with --ignore"
        )
    return names


def _ignored(path: str, patterns: Iterable[str]) -> bool:
    parts = path.split("/")
    if any(part.startswith(".") or part in _NEVER for part in parts):
        return True
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(
        fnmatch(name, pattern.rstrip("/")) for pattern in patterns for name in (*above, *parts)
    )


def _check_suffixes(files: Sequence[ForeignFile], kind: Kind, source: str) -> None:
    unknown = [file.path for file in files if suffix_of(file.path) not in kind.SUFFIXES]
    if unknown:
        count = f"{len(unknown)} files are" if len(unknown) > 1 else "one file is"
        suffixes = sorted({suffix_of(path) or "(none)" for path in unknown})
        raise RequestError(
            f"SOURCE {source}: {count} of another suffix than {', '.join(sorted(kind.SUFFIXES))}: "
            f"{_some(unknown)}; leave them out with "
            + " ".join(f"--ignore '*{suffix}'" for suffix in suffixes[:_SHOWN])
            + ", or import another kind"
        )


def suffix_of(path: str) -> str:
    """The suffix of a file's name, in lower case, with its dot."""
    return PurePosixPath(path).suffix.lower()


def _split_folders(files: Sequence[ForeignFile], folders: Sequence[str]) -> dict[str, Split | None]:
    """Which split each top folder is, None for one yet to be drawn; {} where they are classes."""
    tops = {file.path.split("/")[0] for file in files} | {f.split("/")[0] for f in folders}
    meant = {top: split for top in tops for split, names in _SPLITS.items() if top.lower() in names}
    if len(meant) < len(tops) or "train" not in meant.values():
        return {}
    if len(set(meant.values())) == 1:
        return dict.fromkeys(tops)
    held: Split = "train" if "test" in meant.values() else "test"
    says: dict[str, Split] = {"train": "train", "validation": held, "test": "test"}
    return {top: says[split] for top, split in meant.items()}


def _check_places(files: Sequence[ForeignFile], depth: int, source: str) -> None:
    loose = [file.path for file in files if file.path.count("/") < depth]
    if loose:
        layout = "SPLIT/CLASS/FILE" if depth == 2 else "CLASS/FILE"
        raise RequestError(
            f"SOURCE {source}: files lie as {layout}, but {_some(loose)} lies in no class folder; "
            "move it into one, or leave it out with --ignore"
        )


def _check_ids(items: Sequence[Item], source: str) -> None:
    counted = Counter(item.id for item in items)
    if twice := [name for name, count in counted.items() if count > 1]:
        raise RequestError(
            f"SOURCE {source}: {counted[twice[0]]} files would have the id {twice[0]!r}: their "
            "names differ only in how accents are spelled; rename or remove one"
        )


def _class_folders(folders: Iterable[str], depth: int) -> set[str]:
    return {path.split("/")[depth - 1] for path in folders if path.count("/") == depth - 1}


def _check_given(names: Sequence[str], folders: frozenset[str], source: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise RequestError(f"--classes: {_some(twice)} is there twice; each class has one label")
    if unknown := sorted(folders - set(names)):
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RequestError(
            f"--classes: SOURCE {source} has a class folder {_some(unknown)} that is not listed"
            f"{hint}; add it, or leave it out with --ignore"
        )
    if empty := [name for name in names if name not in folders]:
        raise RequestError(
            f"--classes: class {_some(empty)} has no folder in SOURCE {source}; remove it"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN]) or "none"
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"

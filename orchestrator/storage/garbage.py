"""What lies in a store and is of no use any more: found here, and deleted.

A blob is in use as long as its sha256 stands in a checkpoint's manifest, in what `pretrained/`
holds, or in the plan or the experiment of a study. Whatever looks like one there counts: rather
too much is kept than too little. Leftovers of checkpoints are files without a manifest, of an
epoch before the study's newest owner's. Nothing is garbage before it has lain there for a while.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.storage import checkpoints, layout
from orchestrator.storage.formats import check_format
from orchestrator.storage.removal import remove
from orchestrator.storage.unfinished import Unfinished, discard, unfinished
from orchestrator.storage.uri import Damaged, Entry, Missing, Store

DAY_SECONDS = 86_400.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRETRAINED_FORMAT = 1
_AT_ONCE = 8


@dataclass(frozen=True)
class Inventory:
    """What was found in a store."""

    blobs: tuple[Entry, ...]
    states: tuple[Entry, ...]
    """All files of checkpoints."""
    referred: frozenset[str]
    """What may be the sha256 of a blob that somebody needs."""
    unfinished: tuple[Unfinished, ...]
    unfinished_told: bool
    """False where the server does not say which uploads are unfinished."""


@dataclass(frozen=True)
class Garbage:
    """What is to go, and what stays."""

    blobs: tuple[Entry, ...]
    leftovers: tuple[Entry, ...]
    unfinished: tuple[Unfinished, ...]
    in_use: int
    """Blobs that are referred to."""
    young: int
    """Objects that nobody refers to, but that lie there for too short a time."""

    @property
    def bytes(self) -> int:
        """What goes, in bytes; unfinished uploads to S3 count as none."""
        objects = sum(one.size for one in (*self.blobs, *self.leftovers))
        return objects + sum(one.size for one in self.unfinished)


def inventory(store: Store) -> Inventory:
    """Look through a store; writes nothing.

    Raises StorageError, also for a manifest that is damaged or of a newer format: what it refers
    to is not known then.
    """
    blobs = [one for one in store.list(layout.BLOBS) if layout.parse_blob(one.key) is not None]
    kept = store.list(layout.STUDIES)
    speaking = [one.key for one in (*kept, *store.list(layout.PRETRAINED)) if _speaks(one.key)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        referred = pool.map(lambda key: _referred(store, key), speaking)
        found = frozenset().union(*referred)
    begun = unfinished(store)
    return Inventory(
        blobs=tuple(blobs),
        states=tuple(one for one in kept if layout.checkpoint_of(one.key) is not None),
        referred=found,
        unfinished=tuple(begun or ()),
        unfinished_told=begun is not None,
    )


def garbage(
    found: Inventory, epochs: Mapping[str, int], *, now: float, grace_seconds: float
) -> Garbage:
    """What of `found` may go. Pure.

    `epochs`: the fencing epoch of each study's newest owner. `now`: unix seconds by the store's
    clock, before `found` was looked at. What was written less than `grace_seconds` ago stays, and
    of what was begun and not ended all that is not a day old.
    """
    blobs = _unreferred(found.blobs, found.referred)
    left = _leftovers(found.states, epochs)
    old_blobs, old_left = _old(blobs, now - grace_seconds), _old(left, now - grace_seconds)
    before = now - max(grace_seconds, DAY_SECONDS)
    begun = tuple(one for one in found.unfinished if one.begun <= before)
    candidates = len(blobs) + len(left) + len(found.unfinished)
    return Garbage(
        blobs=old_blobs,
        leftovers=old_left,
        unfinished=begun,
        in_use=len(found.blobs) - len(blobs),
        young=candidates - len(old_blobs) - len(old_left) - len(begun),
    )


def collect(store: Store, rubbish: Garbage, confirm: Callable[[], object]) -> None:
    """Delete it; `confirm` is called before each delete. May be cut short anywhere and repeated.

    Raises what `confirm` raises, and StorageError.
    """
    for blob in rubbish.blobs:
        confirm()
        store.delete(blob.key)
    remove(store, (entry.key for entry in rubbish.leftovers), confirm)
    for one in rubbish.unfinished:
        confirm()
        discard(store, one)


def _unreferred(blobs: Iterable[Entry], referred: Collection[str]) -> list[Entry]:
    return [blob for blob in blobs if layout.parse_blob(blob.key) not in referred]


def _leftovers(states: Collection[Entry], epochs: Mapping[str, int]) -> list[Entry]:
    complete = {layout.folder(one.key) for one in states if layout.is_manifest(one.key)}
    return [
        one
        for one in states
        if layout.folder(one.key) not in complete
        and (at := layout.checkpoint_of(one.key)) is not None
        and at.epoch < epochs.get(layout.study_of(one.key) or "", 0)
    ]


def _old(entries: Iterable[Entry], before: float) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.modified <= before)


def _speaks(key: str) -> bool:
    """May what lies there refer to blobs?"""
    study = layout.study_of(key)
    if study is None:
        return key.startswith(f"{layout.PRETRAINED}/")
    return layout.is_manifest(key) or key in (layout.experiment(study), layout.plan(study))


def _referred(store: Store, key: str) -> set[str]:
    try:
        content = store.get_within(key, checkpoints.LARGEST_BYTES)
    except Missing:
        return set()  # deleted just now
    shown = f"{store.uri}/{key}"
    newest = checkpoints.FORMAT if layout.is_manifest(key) else _PRETRAINED_FORMAT
    try:
        text = content.decode()
        if layout.is_manifest(key) or layout.study_of(key) is None:
            check_format(json.loads(text)["format"], newest, shown)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(
            f"{shown} cannot be read ({error}), so that it is not known which blobs it needs;"
            " bring it back from a copy, or delete it, and give the same command again"
        ) from error
    return set(_SHA256.findall(text))

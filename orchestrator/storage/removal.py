"""Deleting states: the manifest first, then the files that it speaks of.

What a deletion that was cut short leaves behind are files without a manifest. Nobody takes them
for a checkpoint, and the next deletion of the same trial, or `orchestrator gc`, removes them.
"""

from collections.abc import Callable, Iterable

from orchestrator.storage import layout
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Entry, Store


def remove(
    store: Store, keys: Iterable[str], confirm: Callable[[], object] = lambda: None
) -> list[str]:
    """Delete files of checkpoints, each checkpoint's manifest first; returns the keys in order.

    `confirm` is called before each delete and raises when it is no longer ours to do. What is
    gone already is no error. Raises StorageError.
    """
    ordered = sorted(keys, key=lambda key: (layout.folder(key), not layout.is_manifest(key)))
    for key in ordered:
        confirm()
        store.delete(key)
    return ordered


def states(store: Store, study: str, trials: Iterable[str]) -> list[Entry]:
    """All files of the checkpoints of these trials, complete or not, sorted."""
    wanted = frozenset(trials)
    if not wanted:
        return []
    return [entry for entry in store.list(layout.trials(study)) if _trial(entry.key) in wanted]


def still_held(lease: Lease) -> None:
    """Raise LeaseLost where a lease was lost; the store is asked where that is not sure."""
    lease.check()
    if not lease.sure:
        lease.confirm()


def _trial(key: str) -> str | None:
    """Whose checkpoint the file of this key belongs to."""
    at = layout.checkpoint_of(key)
    return None if at is None else at.trial

"""`gc STORAGE`: what no study under a storage needs any more; deleted with --yes."""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from orchestrator import clock
from orchestrator.errors import RequestError
from orchestrator.evidence.wording import count, size
from orchestrator.storage import layout
from orchestrator.storage.collector import alone, newest_epochs, owners
from orchestrator.storage.garbage import Garbage, collect, garbage, inventory
from orchestrator.storage.lease import Owner, StudyIsOwned
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.uri import Store

GRACE_HOURS = 24.0
_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STORAGE, --dry-run, --yes, --grace."""
    parser.add_argument("storage", metavar="STORAGE", help="folder or URI of the store")
    act = parser.add_mutually_exclusive_group()
    act.add_argument(
        "-n", "--dry-run", action="store_true", help="only show what would go; so it is anyway"
    )
    act.add_argument("-y", "--yes", action="store_true", help="delete it")
    parser.add_argument(
        "--grace", type=_hours, default=GRACE_HOURS, metavar="HOURS",
        help=f"leave what was written in the last HOURS alone [{GRACE_HOURS:g}]",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Show what would go, or delete it and show what went."""
    store = Store.open(parsed.storage)
    _check_there(store, parsed.storage)
    running: dict[str, Owner] = {}
    grace_seconds = 3600.0 * parsed.grace
    if parsed.yes:
        try:
            with alone(store) as here:
                now = here.now
                found = inventory(store)
                rubbish = garbage(found, here.epochs, now=now, grace_seconds=grace_seconds)
                collect(store, rubbish, here.confirm)
        except StudyIsOwned as owned:
            raise RequestError(f"nothing was deleted: {owned}") from None
    else:
        epochs = newest_epochs(store.list(layout.STUDIES))
        running = owners(store, epochs)
        found = inventory(store)
        rubbish = garbage(found, epochs, now=clock.now(), grace_seconds=grace_seconds)
    if parsed.json:
        print(json.dumps(_as_json(store, rubbish, running, deleted=parsed.yes)))
        return 0
    _show(store, rubbish, deleted=parsed.yes)
    if not found.unfinished_told:
        print("unfinished uploads: not told by this server, or to this key")
    for study, owner in running.items():
        print(f"study {study!r} may be running ({_named(owner)}): --yes is refused while it is")
    return 0


def _check_there(store: Store, given: str) -> None:
    """Refuse a place where no study ever was: it was misspelled."""
    quick = store.impatient() if isinstance(store, S3Store) else store
    if not any(map(quick.list, (layout.STUDIES, layout.BLOBS, layout.PRETRAINED))):
        raise RequestError(
            f"STORAGE {given}: neither studies nor blobs lie there; name what the studies were"
            " given as --storage"
        )


def _show(store: Store, rubbish: Garbage, *, deleted: bool) -> None:
    went = "deleted" if deleted else "would be deleted"
    print(f"storage {store.uri}")
    _group("blob", "that nothing refers to", [one.key for one in rubbish.blobs])
    _group("file", "of interrupted checkpoints", [one.key for one in rubbish.leftovers])
    _group("unfinished write", "of a day ago or longer", [one.key for one in rubbish.unfinished])
    total = len(rubbish.blobs) + len(rubbish.leftovers) + len(rubbish.unfinished)
    print(
        f"{count(total, 'object')}, {size(rubbish.bytes)}, {went}; {count(rubbish.in_use, 'blob')}"
        f" in use; {rubbish.young} too young to go (--grace)"
    )
    if total and not deleted:
        print("nothing was deleted: --yes does it")


def _group(noun: str, what: str, keys: Sequence[str]) -> None:
    if keys:
        print(f"{count(len(keys), noun)} {what}")
    for key in keys[:_LISTED]:
        print(f"  {key}")
    if len(keys) > _LISTED:
        print(f"  and {len(keys) - _LISTED} more (--json names all)")


def _as_json(
    store: Store, rubbish: Garbage, running: dict[str, Owner], *, deleted: bool
) -> dict[str, Any]:
    return {
        "storage": store.uri,
        "deleted": deleted,
        "blobs": _listed((one.key, one.size) for one in rubbish.blobs),
        "leftovers": _listed((one.key, one.size) for one in rubbish.leftovers),
        "unfinished": _listed((one.key, one.size) for one in rubbish.unfinished),
        "bytes": rubbish.bytes,
        "in_use": rubbish.in_use,
        "young": rubbish.young,
        "running": {study: _named(owner) for study, owner in running.items()},
    }


def _listed(entries: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"key": key, "bytes": size_bytes} for key, size_bytes in entries]


def _named(owner: Owner) -> str:
    since = datetime.fromtimestamp(owner.since).isoformat(sep=" ", timespec="seconds")
    return f"process {owner.pid} on {owner.host}, since {since}"


def _hours(text: str) -> float:
    """Raises `RequestError` for what is no span of time."""
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 <= hours < math.inf:
        raise RequestError(f"--grace {text}: a number of hours, 0 or more")
    return hours

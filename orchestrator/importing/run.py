"""Carrying an import out: files are read and decoded by threads, parts are written in order."""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from m2pt.data.write import Row, chain, part_bytes
from orchestrator.errors import OrchestratorError, RequestError
from orchestrator.importing.destination import (
    FORMAT,
    Destination,
    Found,
    PartRecord,
    digest_of,
    open_destination,
)
from orchestrator.importing.folders import Item, suffix_of
from orchestrator.importing.kinds import FILE_BYTES, Broken, seed_of
from orchestrator.importing.plan import Plan, Request, changes, make_plan
from orchestrator.storage.address import Bucket, Folder, parse
from orchestrator.storage.foreign import ForeignFolder

Watch = Callable[[int, int], None]
"""Called with the number of files that are done and that of all."""


@dataclass(frozen=True)
class Outcome:
    """What an import came to. `dataset` is what lies in `dataset.json`."""

    uri: str
    dataset: dict[str, Any]
    parts_before: int
    """How many parts were complete when it began: all of them where nothing was left to do."""
    seconds: float


def carry_out(request: Request, watch: Watch) -> Outcome:
    """Import what `request` says, or go on with it, or find that it is done.

    Raises:
        RequestError: the request, the listing or a file is wrong. Nothing was written, unless a
            broken file was found after the first parts; those are kept, and are no data set.
        StorageError: source or destination failed; the same command goes on.
    """
    began = time.monotonic()
    _check_apart(request)
    destination = open_destination(request.destination)
    plan = make_plan(request, ForeignFolder(request.source).list())
    names = [f"part-{number:05d}.parquet" for number in range(len(plan.parts))]
    found = _accepted(destination, request, plan)
    if found.dataset is not None:
        destination.tidy()
        return Outcome(destination.uri, found.dataset, len(names), time.monotonic() - began)
    before = destination.complete(names) if found.identity is not None else ()
    _check_earlier_skips(request, before)
    records = list(before)
    for record, content in _parts(request, plan, records, watch):
        if not records and found.identity is None:
            destination.begin(plan.identity)
        destination.put(record, content)
        records.append(record)
    dataset = _dataset(plan, records)
    _check_counts(dataset, request.source)
    destination.finish(dataset, [pair for record in records for pair in record.skipped])
    return Outcome(destination.uri, dataset, len(before), time.monotonic() - began)


def _check_apart(request: Request) -> None:
    source = parse(request.source, "SOURCE")
    there = parse(request.destination, "DESTINATION")
    if isinstance(source, Folder) and isinstance(there, Folder):
        inside = there.path.resolve().is_relative_to(source.path.resolve())
    elif isinstance(source, Bucket) and isinstance(there, Bucket):
        inside = f"{there.uri}/".startswith(f"{source.uri}/")
    else:
        inside = False
    if inside:
        raise RequestError(
            f"DESTINATION {request.destination}: lies in SOURCE {request.source}, whose files it "
            "would become; choose a folder outside of it"
        )


def _accepted(destination: Destination, request: Request, plan: Plan) -> Found:
    """What is at the destination, when it is of this import or nothing."""
    if request.restart and destination.is_import():
        destination.clear()
    found = destination.look()
    if found.identity is None:
        return found
    if told := changes(found.identity, plan.identity):
        state = "a finished import" if found.dataset is not None else "an unfinished import"
        raise RequestError(
            f"DESTINATION {destination.uri}: holds {state} of another request: {'; '.join(told)}; "
            "give the same options and files, or another destination, or remove what is there and "
            "begin anew with --restart"
        )
    return found


def _parts(
    request: Request, plan: Plan, done: Sequence[PartRecord], watch: Watch
) -> Iterator[tuple[PartRecord, bytes]]:
    """The parts that are not `done` yet, which grows as they are taken."""
    source = ForeignFolder(request.source)
    left = plan.parts[len(done) :]
    labels = {name: label for label, name in enumerate(plan.classes)}
    finished = plan.files - sum(len(part) for part in left)
    watch(finished, plan.files)
    made = _in_order(
        partial(_sample, request, source), (item for part in left for item in part), request.workers
    )
    for part in left:
        rows, skipped = [], []
        for item, sample in zip(part, made, strict=False):
            finished += 1
            watch(finished, plan.files)
            if isinstance(sample, bytes):
                split, label = item.split or "train", labels[item.class_name]
                rows.append(Row(item.id, split, label, item.path, sample, item.group))
                continue
            skipped.append((item.path, sample))
            _check_skips(request, done, skipped)
        yield _packed(rows, skipped, done, plan.declared)


def _in_order(
    make: Callable[[Item], bytes | str], items: Iterable[Item], workers: int | None
) -> Iterator[bytes | str]:
    """`make` of each item, in order, made by threads that run a little ahead."""
    threads = workers or min(32, (os.cpu_count() or 1) + 4)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="import")
    waiting: deque[Future[bytes | str]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _sample(request: Request, source: ForeignFolder, item: Item) -> bytes | str:
    """One file's sample, or why it is broken. Raises OrchestratorError when it cannot be read."""
    if item.file.size > FILE_BYTES:
        return f"has {item.file.size:,} bytes, and a file may have {FILE_BYTES:,}"
    content = source.read(item.path)
    if len(content) != item.file.size:
        raise RequestError(
            f"{source.uri}/{item.path}: changed while it was imported, from {item.file.size} to "
            f"{len(content)} bytes; begin anew with --restart once nothing writes there"
        )
    seed = seed_of(request.seed, item.path)
    try:
        return request.kind.sample(content, suffix_of(item.path), seed)
    except Broken as error:
        return str(error)
    except (OrchestratorError, MemoryError):
        raise
    except Exception as error:  # what a library meets in a broken file, it tells in any way
        said = re.sub(r"<[^>]*>", "the file", " ".join(str(error).split()))
        return f"{type(error).__name__}: {said}"


def _check_skips(
    request: Request, done: Sequence[PartRecord], skipped: Sequence[tuple[str, str]]
) -> None:
    count = len(skipped) + sum(len(record.skipped) for record in done)
    if count <= request.skip_broken:
        return
    path, reason = skipped[-1]
    anew = " and begin anew with --restart" if done else ""
    raise RequestError(
        f"{request.source.rstrip('/')}/{path}: {reason}. It is the {_ordinal(count)} broken file, "
        f"and {request.skip_broken or 'none'} may be skipped: mend or remove it{anew}, or give "
        "--skip-broken N to go on without up to N files"
    )


def _check_earlier_skips(request: Request, before: Sequence[PartRecord]) -> None:
    count = sum(len(record.skipped) for record in before)
    if count > request.skip_broken:
        raise RequestError(
            f"--skip-broken {request.skip_broken}: an earlier run has skipped {count} files; give "
            f"--skip-broken {count} or more, or mend them and begin anew with --restart"
        )


def _ordinal(count: int) -> str:
    ending = "th" if count % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(count % 10)
    return f"{count}{ending or 'th'}"


def _packed(
    rows: Sequence[Row],
    skipped: Sequence[tuple[str, str]],
    done: Sequence[PartRecord],
    declared: dict[str, Any],
) -> tuple[PartRecord, bytes]:
    content = part_bytes(rows, declared) if rows else b""
    counts = {split: [0] * len(declared["classes"]) for split in ("train", "test")}
    for row in rows:
        counts[row.split][row.label] += 1
    record = PartRecord(
        name=f"part-{len(done):05d}.parquet",
        rows=len(rows),
        bytes=len(content),
        sha256=digest_of(content),
        chain=chain(done[-1].chain if done else "", rows),
        counts=(tuple(counts["train"]), tuple(counts["test"])),
        skipped=tuple(skipped),
    )
    return record, content


def _dataset(plan: Plan, records: Sequence[PartRecord]) -> dict[str, Any]:
    """What `dataset.json` says."""
    train, test = (
        [sum(of) for of in zip(*(record.counts[split] for record in records), strict=True)]
        for split in (0, 1)
    )
    return {
        "format": FORMAT,
        "dataset": plan.declared,
        "classes": plan.classes,
        "rows": {"train": sum(train), "test": sum(test)},
        "counts": {"train": train, "test": test},
        "skipped": sum(len(record.skipped) for record in records),
        "digest": records[-1].chain,
        "parts": [
            {"name": r.name, "rows": r.rows, "bytes": r.bytes, "sha256": r.sha256}
            for r in records
            if r.rows
        ],
    }


def _check_counts(dataset: dict[str, Any], source: str) -> None:
    counts = zip(dataset["classes"], dataset["counts"]["train"], strict=True)
    if empty := [name for name, count in counts if not count]:
        raise RequestError(
            f"SOURCE {source}: every training file of class {empty[0]!r} is broken; mend some, or "
            "leave the class out with --ignore, and begin anew with --restart"
        )
    if not dataset["rows"]["test"]:
        raise RequestError(
            f"SOURCE {source}: every test file is broken; mend some, and begin anew with --restart"
        )

"""Where everything lies under a storage prefix: the one place that spells a key.

Numbers in keys are zero-padded, so that a sorted listing is in order of time.
"""

import re
from typing import NamedTuple

from orchestrator.errors import StorageError

_SEGMENT = re.compile(r"studies/[^/]+/journal/(\d+)-(\d+)\.jsonl")
_LEASE = re.compile(r"studies/[^/]+/lease/(\d+)\.json")
_CONTROL = re.compile(r"studies/[^/]+/control/(\d+)-[^/]+\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{2})/([0-9a-f]{64})")
_MANIFEST = re.compile(r"studies/[^/]+/trials/([^/]+)/checkpoints/(\d+)-(\d+)/manifest\.json")


class SegmentKey(NamedTuple):
    """What the key of a journal segment says."""

    epoch: int
    number: int


class ManifestKey(NamedTuple):
    """What the key of a checkpoint's manifest says."""

    trial: str
    epoch: int
    step: int


STUDIES = "studies"
BLOBS = "blobs"
PRETRAINED = "pretrained"
COLLECTOR = ".gc"
"""Stands in the place of a study's name in the lease of `orchestrator gc`; no study can have it."""


def study(name: str) -> str:
    """The folder of one study."""
    return f"{STUDIES}/{name}"


def study_of(key: str) -> str | None:
    """The study whose folder the object of this key lies in; None for any other place."""
    top, _, rest = key.partition("/")
    name = rest.partition("/")[0]
    return name if top == STUDIES and name not in ("", COLLECTOR) else None


def experiment(name: str) -> str:
    """The experiment file as it was handed in."""
    return f"{study(name)}/experiment.yaml"


def plan(name: str) -> str:
    """The plan made from the experiment file."""
    return f"{study(name)}/plan.json"


def journal(name: str) -> str:
    """The folder of the journal's segments."""
    return f"{study(name)}/journal"


def segment(name: str, epoch: int, number: int) -> str:
    """The `number`-th journal segment written under fencing epoch `epoch`."""
    return f"{journal(name)}/{epoch:06d}-{number:06d}.jsonl"


def parse_segment(key: str) -> SegmentKey | None:
    """The numbers in a segment's key; None when `key` is not one."""
    found = _SEGMENT.fullmatch(key)
    return SegmentKey(int(found[1]), int(found[2])) if found else None


def leases(name: str) -> str:
    """The folder of the lease objects, one per fencing epoch."""
    return f"{study(name)}/lease"


def lease(name: str, epoch: int) -> str:
    """The lease object of fencing epoch `epoch`."""
    return f"{leases(name)}/{epoch:06d}.json"


def parse_lease(key: str) -> int | None:
    """The fencing epoch in a lease's key; None when `key` is not one."""
    found = _LEASE.fullmatch(key)
    return int(found[1]) if found else None


def trials(name: str) -> str:
    """The folder of what trials leave behind."""
    return f"{study(name)}/trials"


def checkpoints(name: str, trial: str) -> str:
    """The folder of one trial's checkpoints."""
    return f"{trials(name)}/{trial}/checkpoints"


def checkpoint(name: str, at: ManifestKey) -> str:
    """The folder of one checkpoint."""
    return f"{checkpoints(name, at.trial)}/{at.epoch:06d}-{at.step:08d}"


def manifest(name: str, at: ManifestKey) -> str:
    """The manifest that makes a checkpoint complete."""
    return f"{checkpoint(name, at)}/manifest.json"


def parse_manifest(key: str) -> ManifestKey | None:
    """The trial and numbers in a manifest's key; None when `key` is not one."""
    found = _MANIFEST.fullmatch(key)
    return ManifestKey(found[1], int(found[2]), int(found[3])) if found else None


def is_manifest(key: str) -> bool:
    """Is this the key of a checkpoint's manifest?"""
    return parse_manifest(key) is not None


def checkpoint_of(key: str) -> ManifestKey | None:
    """Which checkpoint the file of this key belongs to; None when it belongs to none."""
    return parse_manifest(f"{folder(key)}/manifest.json")


def controls(name: str) -> str:
    """The folder of requests to the study's driver, such as stop."""
    return f"{study(name)}/control"


def control(name: str, epoch: int, request: str) -> str:
    """One request to the study's driver under fencing epoch `epoch`."""
    return f"{controls(name)}/{epoch:06d}-{request}.json"


def parse_control(key: str) -> int | None:
    """Which fencing epoch a request speaks to; None when `key` is not one."""
    found = _CONTROL.fullmatch(key)
    return int(found[1]) if found else None


def logs(name: str) -> str:
    """The folder of what the study's drivers said."""
    return f"{study(name)}/logs"


def log(name: str, epoch: int, number: int) -> str:
    """The `number`-th piece of the log of the driver of fencing epoch `epoch`."""
    return f"{logs(name)}/{epoch:06d}-{number:06d}.log"


def report(name: str, file: str = "") -> str:
    """A file of the study's report; without `file`, their folder."""
    return f"{study(name)}/report/{file}".rstrip("/")


def export(name: str, trial: str, file: str = "") -> str:
    """A file of a trial's export; without `file`, their folder."""
    return f"{study(name)}/exports/{trial}/{file}".rstrip("/")


def blob(sha256: str) -> str:
    """A content-addressed blob. Raises StorageError for a name that is no sha256 in hex."""
    if not _SHA256.fullmatch(str(sha256)):
        raise StorageError(
            f"a blob is named by its sha256, 64 hex digits, not {sha256!r:.80}: what names it is"
            " damaged"
        )
    return f"{BLOBS}/sha256/{sha256[:2]}/{sha256}"


def parse_blob(key: str) -> str | None:
    """The sha256 in a blob's key; None when `key` is not one."""
    found = _BLOB.fullmatch(key)
    return found[2] if found and found[2].startswith(found[1]) else None


def pretrained(fingerprint: str) -> str:
    """What is known about an auxiliary that was pre-trained here: its blob and its metrics."""
    return f"{PRETRAINED}/{fingerprint}.json"


def pretraining(fingerprint: str) -> str:
    """What stands in the place of a trial's id where a pre-training keeps its checkpoints."""
    return f"pretrain-{fingerprint[:16]}"


def folder(key: str) -> str:
    """The folder in which the object of this key lies; "" for the top one."""
    return key.rpartition("/")[0]

"""Where everything lies under a storage prefix: the one place that spells a key.

Numbers in keys are zero-padded, so that a sorted listing is in order of time.
"""

import re
from typing import NamedTuple

_SEGMENT = re.compile(r"studies/[^/]+/journal/(\d+)-(\d+)\.jsonl")
_LEASE = re.compile(r"studies/[^/]+/lease/(\d+)\.json")
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


def study(name: str) -> str:
    """The folder of one study."""
    return f"{STUDIES}/{name}"


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


def controls(name: str) -> str:
    """The folder of requests to the study's driver, such as stop."""
    return f"{study(name)}/control"


def control(name: str, request: str) -> str:
    """One request to the study's driver."""
    return f"{controls(name)}/{request}.json"


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
    """A content-addressed blob."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def pretrained(fingerprint: str) -> str:
    """What is known about an auxiliary that was pre-trained here: its blob and its metrics."""
    return f"pretrained/{fingerprint}.json"

"""Checkpoints of trials: files first, their manifest last; a checkpoint without one is none.

A checkpoint is written by the worker that trained it. Its files have names that nobody
else gives, so that a stale worker which still writes can never change what a manifest speaks of.

`meta` of a manifest, as the journal understands it when it has to make up for lost events:
`epochs` (a list of what the trial's epoch events said: epoch, epochs, metrics, scales, seconds),
`final` (true when the trial is complete) and, so that even a lost plan comes back, `planned`.
"""

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.storage import layout
from orchestrator.storage.formats import check_format
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.lease import LeaseLost, newest_epoch
from orchestrator.storage.removal import remove
from orchestrator.storage.uri import AlreadyThere, Damaged, Missing, Store

_LOG = logging.getLogger(__name__)

FORMAT = 1
"""Of manifests. Newer ones are refused, older ones are read."""
LARGEST_BYTES = 64 * 1024 * 1024
"""Of a manifest: a thousand epochs of a thousand figures have less."""


@dataclass(frozen=True)
class Accepted:
    """Which manifests count: those of one's own fencing epoch and those that it took over."""

    epoch: int
    manifests: frozenset[str] = frozenset()

    def __call__(self, key: str) -> bool:
        """Does the manifest of this key count?"""
        at = layout.parse_manifest(key)
        return at is not None and (at.epoch == self.epoch or key in self.manifests)


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint says about itself."""

    key: str
    trial: str
    epoch: int
    """The fencing epoch under which it was written."""
    step: int
    files: Mapping[str, StoredFile]
    meta: Mapping[str, Any]

    @property
    def final(self) -> bool:
        """Is the trial complete with this checkpoint?"""
        return bool(self.meta.get("final", False))


class Retention(Protocol):
    """Says which complete checkpoints of a trial stay (`study.retention.TrialRetention`)."""

    def kept(self, stored: Sequence[Manifest]) -> Sequence[Manifest]:
        """Those of `stored` that stay."""


@dataclass(frozen=True)
class TrialCheckpoints:
    """The checkpoints of one trial, as the holder of one fencing epoch sees them. Picklable."""

    store: Store
    study: str
    trial: str
    accepted: Accepted

    def save(self, step: int, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> Manifest:
        """Write a checkpoint under the own fencing epoch; it counts once this has returned.

        `step` orders the checkpoints of a trial (completed epochs); file names have no "/".
        Saving a step again returns the checkpoint that stands, unless that is damaged.
        Raises StorageError.
        """
        if any("/" in name for name in files):
            raise ValueError(f"files of a checkpoint: plain names, got {sorted(files)}")
        at = ManifestKey(self.trial, self.accepted.epoch, step)
        key = layout.manifest(self.study, at)
        if (standing := self._intact(key)) is not None:
            return standing
        stored = {name: self._put_file(at, name, data) for name, data in files.items()}
        content = _manifest_bytes(at, stored, meta)
        try:
            self.store.put(key, content, if_absent=True)
        except AlreadyThere:
            if (standing := self._intact(key)) is not None:  # a twin was quicker
                return standing
            self.store.put(key, content)
        return read_manifest(self.store, key)

    def latest(self) -> Manifest | None:
        """The newest accepted checkpoint by (step, fencing epoch) whose files are all there.

        Only sizes are looked at; damaged ones are passed over. Raises StorageError only when
        the store cannot be reached, or the newest manifest is of a newer format.
        """
        sizes = self._sizes()
        for key in self._newest_first(sizes):
            manifest = _read_unless_damaged(self.store, key)
            if manifest is not None and all(
                sizes.get(file.key) == file.size for file in manifest.files.values()
            ):
                return manifest
        return None

    def load(self, manifest: Manifest) -> dict[str, bytes]:
        """The files of a checkpoint by name. Raises Missing, or Damaged when one has changed."""
        found = {}
        for name, file in manifest.files.items():
            self._check_size(file)
            found[name] = self.store.get_known(file.key, file.sha256)
        return found

    def load_latest(
        self, on_damaged: Callable[[str], None] = _LOG.warning
    ) -> tuple[Manifest, dict[str, bytes]] | None:
        """The newest accepted checkpoint that is sound to the last byte, with its files.

        `on_damaged` hears of each newer one that is not, and what is wrong with it.
        """
        for key in self._newest_first(self._sizes()):
            try:
                manifest = read_manifest(self.store, key)
                return manifest, self.load(manifest)
            except (Damaged, Missing) as error:
                on_damaged(f"checkpoint {key} is passed over: {error}")
        return None

    def prune(
        self,
        retention: Retention | None = None,
        *,
        newest: Manifest | None = None,
    ) -> list[str]:
        """Delete the checkpoints that `retention` lets go; returns the keys deleted.

        `newest` is the one just saved: it stays, and nothing is deleted unless all its files are
        there. What has a later step was passed over when the trial was taken up, or is a twin's:
        it neither counts nor is touched. Without `newest` it is the newest complete one; without
        a rule that one alone stays. Leftovers of unfinished and of unaccepted checkpoints go
        too; nothing of a newer fencing epoch does. Raises LeaseLost once there is a newer epoch:
        its owner may go on from what would be deleted here.
        """
        sizes = self._sizes()
        sound = [one for key in self._newest_first(sizes) if (one := self._sound(key)) is not None]
        top = newest or (sound[0] if sound else None)
        if top is None or all(one.key != top.key for one in sound):
            return []
        later = [one for one in sound if one.step > top.step]
        stored = sound[len(later) :]
        kept = stored[:1] if retention is None else retention.kept(stored)
        stays = {layout.folder(one.key) for one in (top, *later, *kept)}
        gone = [key for key in sizes if layout.folder(key) not in stays and self._below(top, key)]
        return remove(self.store, gone, self._check_fence)

    def _check_fence(self) -> None:
        if (newer := newest_epoch(self.store, self.study)) > self.accepted.epoch:
            raise LeaseLost(
                f"study {self.study!r}: lost lease epoch {self.accepted.epoch} < {newer}: another"
                " driver has taken over; its checkpoints are not deleted"
            )

    def _below(self, top: Manifest, key: str) -> bool:
        """Does the file `key` belong to a checkpoint that `top` has left behind?"""
        at = layout.checkpoint_of(key)
        return at is not None and (
            at.epoch < self.accepted.epoch
            or (at.epoch == self.accepted.epoch and at.step < top.step)
        )

    def _put_file(self, at: ManifestKey, name: str, data: bytes) -> StoredFile:
        stem, dot, suffix = name.partition(".")
        key = f"{layout.checkpoint(self.study, at)}/{stem}-{secrets.token_hex(6)}{dot}{suffix}"
        return StoredFile(key, len(data), self.store.put_hashing(key, data))

    def _check_size(self, file: StoredFile) -> None:
        """Before anything is read: what is not of its size need not be."""
        found = self.store.size(file.key)
        if found is None:
            raise Missing(f"{self.store.uri}/{file.key} is missing")
        if found != file.size:
            raise Damaged(
                f"{self.store.uri}/{file.key} has {found} bytes, its manifest says {file.size}"
            )

    def _sizes(self) -> dict[str, int]:
        folder = layout.checkpoints(self.study, self.trial)
        return {entry.key: entry.size for entry in self.store.list(folder)}

    def _newest_first(self, keys: Mapping[str, int]) -> list[str]:
        """The accepted manifests among `keys`, by (step, fencing epoch), newest first."""
        found = [
            (at.step, at.epoch, key)
            for key in keys
            if (at := layout.parse_manifest(key)) is not None and self.accepted(key)
        ]
        return [key for _, _, key in sorted(found, reverse=True)]

    def _sound(self, key: str) -> Manifest | None:
        """The manifest of `key`, when it and its files are there in full."""
        manifest = _read_unless_damaged(self.store, key)
        if manifest is None or any(
            self.store.size(file.key) != file.size for file in manifest.files.values()
        ):
            return None
        return manifest

    def _intact(self, key: str) -> Manifest | None:
        """The manifest of `key`, when it and its files are there to the last byte."""
        try:
            manifest = read_manifest(self.store, key)
            self.load(manifest)
        except (Missing, Damaged):
            return None
        return manifest


def manifest_keys(store: Store, study: str) -> list[str]:
    """The keys of all manifests of a study, sorted."""
    keys = [entry.key for entry in store.list(layout.trials(study))]
    return [key for key in keys if layout.parse_manifest(key) is not None]


def read_manifest(store: Store, key: str) -> Manifest:
    """One manifest. Raises Missing, Damaged, or StorageError when it is of a newer format."""
    content = store.get_within(key, LARGEST_BYTES)
    try:
        said = json.loads(content)
        check_format(said["format"], FORMAT, f"{store.uri}/{key}")
        files = {name: _stored_file(key, file) for name, file in said["files"].items()}
        return Manifest(key, said["trial"], said["epoch"], said["step"], files, said["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{store.uri}/{key} is no manifest of a checkpoint: {error}") from error


def _stored_file(manifest: str, said: Mapping[str, Any]) -> StoredFile:
    """A file of a checkpoint lies beside its manifest, whatever that says. Raises ValueError."""
    name = said["file"]
    if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"it names the file {name!r:.80}, which cannot lie beside it")
    return StoredFile(f"{layout.folder(manifest)}/{name}", said["size"], said["sha256"])


def _manifest_bytes(
    at: ManifestKey, files: Mapping[str, StoredFile], meta: Mapping[str, Any]
) -> bytes:
    said = {
        "format": FORMAT,
        **at._asdict(),
        "files": {
            name: {"file": file.key.rpartition("/")[2], "size": file.size, "sha256": file.sha256}
            for name, file in files.items()
        },
        "meta": dict(meta),
    }
    return json.dumps(said, indent=1).encode()


def _read_unless_damaged(store: Store, key: str) -> Manifest | None:
    try:
        return read_manifest(store, key)
    except (Missing, Damaged):
        return None

"""Checkpoints of trials: files first, their manifest last; a checkpoint without one is none.

A checkpoint is written by the worker that trained it. Its files carry their digest in their
name, so that a stale worker which still writes can never change what a manifest speaks of.

`meta` of a manifest, as the journal understands it when it has to make up for lost events:
`epochs` (a list of what the trial's epoch events said: epoch, epochs, metrics, scales, seconds),
`final` (true when the trial is complete) and, so that even a lost plan comes back, `planned`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.storage import layout
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.uri import AlreadyThere, Damaged, Missing, Store

FORMAT = 1
"""Of manifests. Newer ones are refused, older ones are read."""


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
        if (standing := self._sound(key)) is not None:
            return standing
        stored = {name: self._put_file(at, name, data) for name, data in files.items()}
        content = _manifest_bytes(at, stored, meta)
        try:
            self.store.put(key, content, if_absent=True)
        except AlreadyThere:
            if (standing := self._sound(key)) is not None:  # a twin was quicker
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
            data = self.store.get(file.key)
            if (sha256 := hashlib.sha256(data).hexdigest()) != file.sha256:
                raise Damaged(
                    f"{self.store.uri}/{file.key} is damaged: {len(data)} bytes of sha256 {sha256},"
                    f" its manifest says {file.size} and {file.sha256}"
                )
            found[name] = data
        return found

    def load_latest(self) -> tuple[Manifest, dict[str, bytes]] | None:
        """The newest accepted checkpoint that is sound to the last byte, with its files."""
        for key in self._newest_first(self._sizes()):
            manifest = _read_unless_damaged(self.store, key)
            if manifest is not None and (files := self._load_unless_damaged(manifest)) is not None:
                return manifest, files
        return None

    def prune(self, keep: int = 1) -> list[str]:
        """Delete all but the `keep` newest complete checkpoints; returns the keys deleted.

        Leftovers of unfinished and of unaccepted checkpoints go with them. Nothing of a newer
        fencing epoch is touched, nor anything of the own one that is newer than what is kept.
        """
        sizes = self._sizes()
        kept = [key for key in self._newest_first(sizes) if self._sound(key) is not None][:keep]
        if len(kept) < keep or not kept:
            return []
        folders = {_folder(key) for key in kept}
        limit = layout.parse_manifest(kept[-1])
        gone = [
            key
            for key in sizes
            if _folder(key) not in folders
            and (at := _place(key)) is not None
            and limit is not None
            and (
                at.epoch < self.accepted.epoch
                or (at.epoch == self.accepted.epoch and at.step < limit.step)
            )
        ]
        # the manifest goes first: what is left of a deletion cut short is not a checkpoint
        for key in sorted(gone, key=lambda key: (_folder(key), not key.endswith("/manifest.json"))):
            self.store.delete(key)
        return gone

    def _put_file(self, at: ManifestKey, name: str, data: bytes) -> StoredFile:
        sha256 = hashlib.sha256(data).hexdigest()
        stem, dot, suffix = name.partition(".")
        key = f"{layout.checkpoint(self.study, at)}/{stem}-{sha256[:12]}{dot}{suffix}"
        self.store.put(key, data)
        if (size := self.store.size(key)) != len(data):
            raise StorageError(f"{self.store.uri}/{key}: {len(data)} bytes written, {size} found")
        return StoredFile(key, len(data), sha256)

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

    def _load_unless_damaged(self, manifest: Manifest) -> dict[str, bytes] | None:
        if any(self.store.size(file.key) != file.size for file in manifest.files.values()):
            return None
        try:
            return self.load(manifest)
        except (Damaged, Missing):
            return None


def manifest_keys(store: Store, study: str) -> list[str]:
    """The keys of all manifests of a study, sorted."""
    keys = [entry.key for entry in store.list(layout.trials(study))]
    return [key for key in keys if layout.parse_manifest(key) is not None]


def read_manifest(store: Store, key: str) -> Manifest:
    """One manifest. Raises Missing, Damaged, or StorageError when it is of a newer format."""
    content = store.get(key)
    try:
        said = json.loads(content)
        number = said["format"]
        if number <= FORMAT:
            folder = _folder(key)
            files = {
                name: StoredFile(f"{folder}/{file['file']}", file["size"], file["sha256"])
                for name, file in said["files"].items()
            }
            return Manifest(key, said["trial"], said["epoch"], said["step"], files, said["meta"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{store.uri}/{key} is no manifest of a checkpoint: {error}") from error
    raise StorageError(
        f"{store.uri}/{key} has format {number}, this release reads up to {FORMAT}: upgrade"
    )


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


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _place(key: str) -> ManifestKey | None:
    """Which checkpoint the file of this key belongs to."""
    return layout.parse_manifest(f"{_folder(key)}/manifest.json")

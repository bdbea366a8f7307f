"""What a pre-training sees of its gang: as a trial does, and it leaves weights behind as blobs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from m2pt.training.report import EpochReport
from m2pt.training.state import State
from orchestrator.ray_backend.reporting import GangSession
from orchestrator.storage import blobs

Json = dict[str, Any]


@dataclass
class PretrainSession(GangSession):
    """The session of a pre-training: at the epochs of `keep` its weights become blobs.

    Every manifest says which blobs there are, so that whoever goes on knows them. It ends with the
    last epoch that is to be kept.
    """

    keep: frozenset[int] = frozenset()
    weights: Callable[[], bytes] = bytes
    """The weights as they are now, as a blob holds them."""
    kept: dict[str, Json] = field(default_factory=dict)
    """What was kept, on rank 0: sha256 and metrics by epoch."""

    def report(self, report: EpochReport, capture: Callable[[], State]) -> bool:
        """Keep weights where they are asked for, then as a trial's session does."""
        if report.epoch in self.keep and self.world.rank == 0:
            sha256 = blobs.put(self.checkpoints.store, self.weights())
            self.kept[str(report.epoch)] = {"sha256": sha256, "metrics": report.metrics}
        return super().report(report, capture) or report.epoch >= max(self.keep)

    def outcome(self) -> Json:
        """What there is to say at the end; it was stopped where weights are still missing."""
        if not self._complete():
            return {"kind": "stopped"}
        spent = [part for value in self.history for part in value["seconds"].items()]
        seconds = sum(took for name, took in spent if name != "upload")  # it is beside training
        return {"kind": "finished", "kept": self.kept, "seconds": seconds}

    def _meta(self, *, final: bool) -> Json:
        return super()._meta(final=final) | {"kept": dict(self.kept)}

    def _find(self) -> tuple[Json, bytes] | None:
        found = super()._find()
        if found is None:
            return None
        meta, data = found
        kept, done = dict(meta.get("kept", {})), len(meta["epochs"])
        if any(epoch <= done and str(epoch) not in kept for epoch in self.keep):
            return None  # it went past an epoch that nobody had asked for then
        self.kept = kept
        return meta, data

    def _complete(self) -> bool:
        return all(str(epoch) in self.kept for epoch in self.keep)

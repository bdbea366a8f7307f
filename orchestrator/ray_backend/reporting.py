"""What a trial sees of its gang: where it left off, and who hears of its epochs."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from m2pt.training.progress import beat
from m2pt.training.report import EpochReport
from m2pt.training.state import State, from_bytes, to_bytes
from m2pt.training.world import World
from orchestrator.errors import ClusterError
from orchestrator.promotion.stored import STATE_FILE
from orchestrator.ray_backend.leases import answer
from orchestrator.ray_backend.worker import Gang
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.study.retention import TrialRetention

Json = dict[str, Any]
_BEAT_SECONDS = 5.0


class StoppedHere(Exception):
    """A trial that is taken up again was stopped where it stands: nothing is left to train."""


@dataclass
class GangSession:
    """A trial's session in a gang (`m2pt.training.session.Session`). A context manager.

    A checkpoint is uploaded while the next epoch trains, one at a time. An epoch is reported once
    its checkpoint is complete, so that a report is never ahead of what can be resumed; what a lost
    attempt reported to nobody is read from the manifest and sent again.
    """

    gang: Gang
    call: Json
    checkpoints: TrialCheckpoints
    reported: int
    rungs: frozenset[int]
    every_epochs: int
    about: Json
    """Kept in every manifest: the plan of the trial, and what it takes to rebuild it."""
    retention: TrialRetention = field(default_factory=TrialRetention)
    """Which checkpoints of the trial stay, once a newer one is complete."""
    history: list[Json] = field(default_factory=list)
    _sending: "_Sending | None" = None
    _warned: bool = False
    """Whether the state was kept because a node is leaving."""

    def __enter__(self) -> "GangSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for what is on its way; its own failure is raised unless there is another one."""
        if self._sending is not None:
            self._sending.wait()
            if kind is None:
                self._sending.result()

    @property
    def world(self) -> World:
        """This worker among all workers."""
        return self.gang.world

    def latest(self) -> State | None:
        """The newest sound checkpoint, the same one on every rank.

        Raises `StoppedHere` when it lies at a rung from which the trial is not to go on.
        """
        found = self.gang.broadcast(self._find)
        if found is None:
            return None
        meta, data = found
        self.history = list(meta["epochs"])
        if self.gang.broadcast(self._catch_up):
            raise StoppedHere
        return from_bytes(data)

    def report(self, report: EpochReport, capture: Callable[[], State]) -> bool:
        """Keep the state, then the numbers; True when the trial is to stop here.

        Training waits for the upload at a rung, where it is decided upon, after the last epoch,
        when a node is leaving, and where the one before is not complete yet.
        """
        leaving = self._node_is_leaving() and not self._warned
        if self.gang.world.rank != 0:
            self._warned |= leaving
            return False
        value: Json = {
            "epoch": report.epoch,
            "epochs": report.epochs,
            "metrics": report.metrics,
            "scales": report.scales,
            "seconds": dict(report.seconds),
        }
        if not self.history or report.epoch == len(self.history) + 1:
            self.history.append(value)
        last, rung = report.epoch == report.epochs, report.epoch in self.rungs
        waits = last or rung or leaving or self._stop_asked()
        if not waits and report.epoch % self.every_epochs:
            return self._send_after_the_last(value)
        began = time.perf_counter()
        self._arrived()  # one at a time: memory holds one state at most
        data, meta = to_bytes(capture()), self._meta(final=last)
        value["seconds"]["checkpoint"] = time.perf_counter() - began
        self._sending = _Sending(lambda: self._store_and_send(value, data, meta))
        stop = waits and self._arrived()
        if leaving:
            self._warned = True
            ray.get(self.gang.mailbox.excuse.remote(self.call))
        return stop

    def _send_after_the_last(self, value: Json) -> bool:
        before, number = self._sending, value["epoch"] - 1
        if before is None or before.done:
            return self._arrived() or self._send(number, value, wait=False)
        self._sending = _Sending(lambda: before.result() or self._send(number, value, wait=False))
        return False

    def _store_and_send(self, value: Json, data: bytes, meta: Json) -> bool:
        began, epoch = time.perf_counter(), value["epoch"]
        manifest = self.checkpoints.save(epoch, {STATE_FILE: data}, meta)
        value["seconds"]["upload"] = time.perf_counter() - began
        value["checkpoint"] = manifest.key
        self.checkpoints.prune(self.retention, newest=manifest)
        return self._send(epoch - 1, value, wait=epoch in self.rungs)

    def _arrived(self) -> bool:
        """Whether what was sent last, once it has arrived, was answered with a stop."""
        sending, self._sending = self._sending, None
        return False if sending is None else sending.result()

    def _meta(self, *, final: bool) -> Json:
        epochs = [value | {"seconds": dict(value["seconds"])} for value in self.history]
        return {"epochs": epochs, "final": final, **self.about}

    def _catch_up(self) -> bool:
        """Send what nobody heard of; at a rung, wait as the lost attempt did: is it to stop?"""
        stop, newest = False, len(self.history)
        for epoch, value in enumerate(self.history, 1):
            undecided = epoch == newest and epoch in self.rungs
            if epoch > self.reported or undecided:
                stop = self._send(epoch - 1, value, wait=undecided)
        return stop

    def _find(self) -> tuple[Json, bytes] | None:
        found = self.checkpoints.load_latest(self._passed_over)
        if found is None:
            return None
        manifest, files = found
        return dict(manifest.meta), files[STATE_FILE]

    def _passed_over(self, why: str) -> None:
        answer(self.gang.mailbox.remark.remote(self.call, "checkpoint_damaged", why), gone=None)

    def _node_is_leaving(self) -> bool:
        """Whether Ray was told that a node under this gang goes away: the same on every rank."""
        import ray.train

        return ray.train.get_preemption_info() is not None

    def _stop_asked(self) -> bool:
        return self._answered(self.gang.mailbox.asked_to_stop.remote(self.call))

    def _send(self, number: int, value: Json, *, wait: bool) -> bool:
        return self._answered(self.gang.mailbox.report.remote(self.call, number, value, wait))

    def _answered(self, call: ray.ObjectRef) -> bool:
        """Whether the mailbox answers with a stop. Waiting for it is no hanging."""
        while not ray.wait([call], timeout=_BEAT_SECONDS)[0]:
            beat()
        said = ray.get(call)
        if said == "stale":
            raise ClusterError(f"gang {self.gang.number} was replaced by a newer attempt")
        return bool(said == "stop")


class _Sending:
    """One checkpoint on its way, in a thread of its own."""

    def __init__(self, send: Callable[[], bool]) -> None:
        self._answer = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(send,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _run(self, send: Callable[[], bool]) -> None:
        try:
            self._answer = send()
        except BaseException as error:  # raised again where the training waits for it
            self._error = error

    @property
    def done(self) -> bool:
        """Whether it has arrived or failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Until it has arrived or failed. That is no hanging: it ends by itself."""
        while not self.done:
            beat()
            self._thread.join(_BEAT_SECONDS)

    def result(self) -> bool:
        """Whether it was answered with a stop. Raises what went wrong on the way."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._answer

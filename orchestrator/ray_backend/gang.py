"""Gangs: long-lived Ray Train runs that train one leased assignment after another.

Opening a Ray Train worker group costs tens of seconds; a trial costs seconds. So a study opens as
many gangs as it may train trials at once, and each stays until the study closes the mailbox.
"""

import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from ray.actor import ActorHandle

from orchestrator import environment
from orchestrator.config.experiment import Resources
from orchestrator.errors import ClusterError
from orchestrator.ray_backend.leases import answer
from orchestrator.ray_backend.session import Cluster
from orchestrator.ray_backend.watchdog import watched
from orchestrator.startup import import_fast
from orchestrator.study.failures import FailureKind, kind_of, poisons

MAX_RESTARTS = 100  # of one gang; a gang that cannot even start ends much earlier
CLOSE_SECONDS = 3600.0  # an epoch may take long; a second signal does not wait
MAX_EMPTY_RESTARTS = 3  # Ray Train runs that ended without any worker ever registering

Json = dict[str, Any]


def gang_loop(config: Json) -> None:
    """What every worker of a gang runs: lease, perform, hand back, until closed or stale.

    Rank 0 speaks with the mailbox; all ranks hear of it by a broadcast over a gloo group of its
    own, so that waiting costs no GPU and never runs into a collective's time-out.
    """
    import_fast()
    import torch.distributed as dist

    from orchestrator.ray_backend.work import perform
    from orchestrator.ray_backend.worker import Gang

    gang, closed = Gang.join(config), cast(Any, "close")
    while True:
        turn = gang.broadcast(
            lambda: answer(gang.mailbox.current.remote(gang.number, gang.attempt), gone=closed)
        )
        if turn in ("stale", "close"):
            break
        if turn is None:
            continue
        call = {"gang": gang.number, "gang_attempt": gang.attempt, "lease": turn["lease"]}

        def complain(error: str, kind: FailureKind, call: Json = call) -> None:
            answer(gang.mailbox.complain.remote(call, error, kind), gone=None)

        outcome = None
        try:
            # the others wait for rank 0 in collectives: a hang of theirs is one of rank 0's
            leads = gang.world.rank == 0
            with watched(turn["assignment"].get("hang_seconds") if leads else None, complain):
                outcome = perform(gang, turn, call)
        except Exception as error:
            kind = kind_of(error)
            complain(_one_line(error), kind)
            if gang.world.size > 1 or poisons(kind):
                raise  # the other ranks may hang in a collective: Ray Train renews the gang
        gang.clean()
        if gang.world.rank == 0 and outcome is not None:
            answer(gang.mailbox.finish.remote(call, outcome), gone=None)
    dist.barrier(group=gang.control)


def _one_line(error: BaseException) -> str:
    """The error with the innermost place of our code, short enough for a table."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return environment.redacted(f"{type(error).__name__}: {error}{where}")[:2000]


@dataclass
class Gangs:
    """The gangs of one study, each a Ray Train run in a thread of the driver."""

    mailbox: ActorHandle
    count: int
    resources: Resources
    name: str
    cluster: Cluster
    loop: Callable[[Json], None] = gang_loop  # what each worker runs
    _threads: list[threading.Thread] = field(default_factory=list)
    _errors: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> "Gangs":
        """Start opening every gang; returns at once."""
        for number in range(self.count):
            thread = threading.Thread(
                target=self._keep_open, args=(number,), name=f"gang-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *error: object) -> None:
        """Close the mailbox; idle gangs end at once, the others at their next epoch."""
        answer(self.mailbox.close.remote(), gone=None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def check(self) -> None:
        """Raise `ClusterError` when no gang is left that could train."""
        if len(self._errors) == self.count:
            raise ClusterError(f"no gang could be kept open: {self._errors[0]}")

    def _keep_open(self, number: int) -> None:
        empty, error = 0, ""
        try:
            while empty < MAX_EMPTY_RESTARTS:
                before = self._attempt(number)
                ended = self._run(number)
                if ended is None:
                    return
                error = ended
                empty = empty + 1 if self._attempt(number) == before else 0
        except Exception as fault:  # nobody would see the thread die, and all would wait for it
            error = _one_line(fault)
        self._errors[number] = error

    def _attempt(self, number: int) -> int:
        """How often the gang has registered."""
        return int(self._seat(number).get("attempt", 0))

    def _seat(self, number: int) -> Json:
        """What the mailbox knows of a gang; nothing before it has registered."""
        nobody: dict[int, Json] = {}
        return answer(self.mailbox.seats.remote(), gone=nobody).get(number, {})

    def _run(self, number: int) -> str | None:
        """One Ray Train run to its end; None when it was closed, else why it ended."""
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

        from orchestrator.ray_backend.trainer import OneMachineTrainer, PlainTrainer, free

        wanted = self.resources
        kind = OneMachineTrainer if self.cluster.own else PlainTrainer
        per_worker: dict[str, float] = {"CPU": wanted.cpus_per_worker}
        if wanted.gpus_per_worker:
            per_worker["GPU"] = wanted.gpus_per_worker
        trainer = kind(
            self.loop,
            train_loop_config={
                "mailbox": self.mailbox,
                "gang": number,
                "threads": _threads(wanted),
                "loader_workers": wanted.loader_workers,
                "sharding": wanted.sharding,
            },
            scaling_config=ScalingConfig(
                num_workers=wanted.workers,
                use_gpu=wanted.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            run_config=RunConfig(
                name=f"{self.name}-gang-{number}-{os.getpid()}",
                storage_path=self.cluster.folder,  # Ray Train's own state, never the study's
                failure_config=FailureConfig(max_failures=MAX_RESTARTS),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            if self.cluster.own and (places := self._seat(number).get("places")):
                free(places)
            return _one_line(error)
        return None


def _threads(resources: Resources) -> int:
    return max(1, int(resources.cpus_per_worker))

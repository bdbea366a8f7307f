"""Work that the driver itself leases out, beside Tune's trials: auxiliaries and settlements."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import ClusterError, OrchestratorError, Stopped
from orchestrator.ray_backend.mailbox import Mailbox

Json = dict[str, Any]
FOLLOW_SECONDS = 0.5
OnReport = Callable[[str, Json], None]
T = TypeVar("T")


def open_mailbox(node_id: str) -> ActorHandle:
    """The mailbox of one study, kept on the driver's node; it lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(Mailbox)
    return actor.options(scheduling_strategy=here).remote()


def answer(call: ray.ObjectRef, gone: T) -> T:
    """What a call to the mailbox gives; `gone` when its process is, and with it the study."""
    try:
        given: T = ray.get(call)
    except RayActorError:
        return gone
    return given


def lease_all(
    mailbox: ActorHandle,
    assignments: Mapping[str, Json],
    draining: Callable[[], bool],
    on_report: OnReport = lambda name, value: None,
) -> dict[str, Json]:
    """Submit all assignments at once and gather their outcomes by name.

    Raises `Stopped` when the study drains meanwhile; what was finished by then is kept by whoever
    asked for it through `on_report`.
    """
    outcomes: dict[str, Json] = {}
    for name, assignment in assignments.items():
        ray.get(mailbox.submit.remote(name, assignment))
        ray.get(mailbox.reopen.remote(name))
    numbers = dict.fromkeys(assignments, 0)
    while len(outcomes) < len(assignments):
        waiting = [name for name in assignments if name not in outcomes]
        answers = ray.get([mailbox.read.remote(name, numbers[name], 0.5) for name in waiting])
        for name, (kind, value) in zip(waiting, answers, strict=True):
            if kind == "report":
                numbers[name] += 1
                on_report(name, value)
            elif kind == "outcome":
                outcomes[name] = value
                ray.get(mailbox.acknowledge.remote(name))
        if draining():
            raise Stopped("the study was asked to stop")
    return outcomes


@contextmanager
def following(
    mailbox: ActorHandle, on_event: Callable[[Json], None]
) -> Iterator[Callable[[], None]]:
    """Meanwhile, pass what happens to gangs and leases to `on_event`, from a thread.

    Gives a check that raises `ClusterError` once the mailbox is gone.
    """
    ended, gone = threading.Event(), threading.Event()

    def pump() -> None:
        number = 0
        while True:
            last = ended.is_set()  # asked for before reading: nothing that happened is missed
            events: list[Json] | None = answer(mailbox.events.remote(number, FOLLOW_SECONDS), None)
            if events is None:
                gone.set()
                return
            number += len(events)
            try:
                for event in events:
                    on_event(event)
            except OrchestratorError:
                return  # the journal takes no more: whoever holds its lease ends the study
            if last:
                return

    def check() -> None:
        if gone.is_set():
            raise ClusterError(
                "the study's mailbox, a process of Ray's, died; the same command goes on from here"
            )

    thread = threading.Thread(target=pump, name="mailbox-events", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()  # Ray ends a process whose thread still asks after ray.shutdown

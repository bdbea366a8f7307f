"""What a failed attempt of a trial was about, and whether it is worth another one. Pure.

A failure that would repeat (out of memory, a loss that is no number, bad data, a fault in the
program) is not tried again unless the experiment file says so; one of a machine is.
"""

from collections.abc import Mapping
from typing import Literal, get_args

FailureKind = Literal[
    "out_of_memory", "not_finite", "bad_input", "program", "hang", "storage", "worker"
]
KINDS: tuple[FailureKind, ...] = get_args(FailureKind)

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)
_BETWEEN_WORKERS = ("cuda error", "gloo", "nccl", "connection closed by peer", "connection reset")
"""What a worker says whose counterpart died."""


def kind_of(error: BaseException) -> FailureKind:
    """The kind of failure that an exception in a trial means.

    Exceptions of torch, of the store and of the data reader are told apart by name, so that
    deciding needs none of them.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    if names & {"MemoryError", "OutOfMemoryError"} or any(sign in text for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    if "FloatingPointError" in names:
        return "not_finite"
    if names & {"StorageError", "DataAway"}:
        return "storage"
    if "ValueError" in names:
        return "bad_input"
    if names & {"AcceleratorError", "DistBackendError", "ClusterError"}:
        return "worker"
    if any(sign in text for sign in _BETWEEN_WORKERS):
        return "worker"
    return "program"


def tries_again(kind: FailureKind, earlier: int, retries: Mapping[str, int]) -> bool:
    """Whether a trial that failed so is tried again.

    Args:
        kind: of the failure.
        earlier: how often the trial failed so before.
        retries: how often it may, by kind.
    """
    return earlier < retries.get(kind, 0)


def poisons(kind: FailureKind) -> bool:
    """Whether the process it happened in is not to be trusted with another trial."""
    return kind in ("worker", "hang")

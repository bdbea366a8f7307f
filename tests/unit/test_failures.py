"""Which failure is which, and which are tried again."""

import pytest
import torch

from m2pt.data.schema import DataAway
from orchestrator.config.upkeep import Retries
from orchestrator.errors import ClusterError
from orchestrator.storage.uri import Damaged, Unreachable
from orchestrator.study.failures import KINDS, FailureKind, kind_of, tries_again


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (OSError(12, "Cannot allocate memory"), "out_of_memory"),
        (FloatingPointError("loss is nan"), "not_finite"),
        (ValueError("label 12 of 10 classes"), "bad_input"),
        (ValueError("auxiliary 'gloo' is not declared"), "bad_input"),
        (Unreachable("nobody answers"), "storage"),
        (Damaged("sha256 differs"), "storage"),
        (DataAway("nobody answers"), "storage"),
        (torch.AcceleratorError("an illegal memory access"), "worker"),
        (RuntimeError("CUDA error: unspecified launch failure"), "worker"),
        (RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer"), "worker"),
        (ClusterError("gang 1 was replaced by a newer attempt"), "worker"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "program"),
        (KeyError("x"), "program"),
    ],
)
def test_kinds(error: BaseException, kind: str) -> None:
    assert kind_of(error) == kind


def test_every_kind_has_its_retries_and_what_would_repeat_has_none() -> None:
    retries = Retries().model_dump()
    assert set(retries) == set(KINDS)
    repeats: tuple[FailureKind, ...] = ("out_of_memory", "not_finite", "bad_input", "program")
    assert not any(tries_again(kind, 0, retries) for kind in repeats)
    assert tries_again("worker", 1, retries)
    assert not tries_again("worker", 2, retries)
    assert not tries_again("hang", 0, {})

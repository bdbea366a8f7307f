"""λ: its envelope over time, the groups that share it, and the addition that it scales."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from m2pt.pathway.config import LINEARS, Coverage, Envelope, Scale
from m2pt.pathway.coverage import scale_group, scale_places
from m2pt.pathway.scale import add_scaled, envelope_at, value_learns_at

times = st.floats(0.0, 1.0)
untils = st.floats(0.01, 1.0)


@given(times, untils)
def test_warm_ups_rise_from_0_to_1_and_annealing_mirrors_them(t: float, until: float) -> None:
    done = min(t / until, 1.0)
    assert envelope_at(Envelope("constant", until), t) == 1.0
    assert envelope_at(Envelope("hold", until), t) == 1.0
    assert envelope_at(Envelope("linear", until), t) == done
    cosine = envelope_at(Envelope("cosine", until), t)
    assert cosine == pytest.approx(math.sin(math.pi / 2 * done) ** 2, abs=1e-12)
    assert envelope_at(Envelope("anneal", until), t) == pytest.approx(1.0 - cosine, abs=1e-12)


@pytest.mark.parametrize("until", [0.3, 1.0])
def test_the_ends_are_exact(until: float) -> None:
    for kind in ("linear", "cosine"):
        assert [envelope_at(Envelope(kind, until), t) for t in (0.0, until, 1.0)] == [0.0, 1.0, 1.0]
    assert [envelope_at(Envelope("anneal", until), t) for t in (0.0, until, 1.0)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_progress_outside_of_training_is_refused(t: float) -> None:
    with pytest.raises(ValueError, match=r"t: the progress of training in \[0, 1\]"):
        envelope_at(Envelope(), t)


def test_a_held_value_stops_learning_and_a_fixed_one_never_learns() -> None:
    held = Scale(envelope=Envelope("hold", 0.5))
    assert [value_learns_at(held, t) for t in (0.0, 0.49, 0.5, 1.0)] == [True, True, False, False]
    assert value_learns_at(Scale(envelope=Envelope("anneal", 0.5)), 1.0)
    assert not value_learns_at(Scale(learned=False), 0.0)


@pytest.mark.parametrize(
    ("granularity", "split", "groups", "numbers"),
    [
        ("linear", False, 12, 12),
        ("linear", True, 12, 18),
        ("block", False, 3, 3),
        ("block", True, 6, 12),
        ("global", False, 1, 1),
        ("global", True, 2, 4),
    ],
)
def test_groups_of_three_blocks(granularity: str, split: bool, groups: int, numbers: int) -> None:
    scale = Scale(granularity=granularity, split_qkv=split)  # type: ignore[arg-type]  # a str of the table above
    found = {
        scale_group(scale, block, linear): scale_places(Coverage(), scale, linear)[0]
        for block in range(3)
        for linear in LINEARS
    }
    assert len(found) == groups
    assert sum(found.values()) == numbers


def _drawn(bands: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(bands)
    weight, auxiliary = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    values = torch.randn(bands, dtype=torch.float64, generator=generator) * scale
    return weight.requires_grad_(), auxiliary.requires_grad_(), values.requires_grad_()


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_the_gradients_are_those_of_the_formula(bands: int, scale: float) -> None:
    weight, auxiliary, values = _drawn(bands, scale)
    grad = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    plain = weight + values.repeat_interleave(6 // bands)[:, None] * auxiliary
    assert torch.allclose(add_scaled(weight, auxiliary, values), plain, rtol=1e-14, atol=1e-14)
    wanted = torch.autograd.grad(plain, (weight, auxiliary, values), grad)
    found = torch.autograd.grad(
        add_scaled(weight, auxiliary, values), (weight, auxiliary, values), grad
    )
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bands", [1, 3])
def test_it_can_be_differentiated_twice(bands: int) -> None:
    assert torch.autograd.gradgradcheck(add_scaled, _drawn(bands))


def test_zero_leaves_every_bit_also_of_negative_zeros_and_subnormals() -> None:
    weight = torch.tensor([[0.0, -0.0, 1e-45], [-1e-45, 1.0, -3.4e38]])
    for sign in (1.0, -1.0):
        for zero in (0.0, -0.0):
            found = add_scaled(weight, sign * torch.ones(2, 3), torch.tensor([zero]))
            assert torch.equal(found.view(torch.int32), weight.view(torch.int32))


@pytest.mark.parametrize("values", [[0.3], [0.0], [-0.2, 0.1, 1.0], [0.5, 0.0, -0.0]])
def test_looking_at_the_scale_changes_no_bit(
    values: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, auxiliary = torch.randn(2, 6, 5, generator=generator).unbind()
    weight[:, 0] = -0.0
    looked = add_scaled(weight, auxiliary, torch.tensor(values))
    monkeypatch.setattr("m2pt.pathway.scale._seen_nonzero", lambda scale: False)
    unseen = add_scaled(weight, auxiliary, torch.tensor(values))
    assert torch.equal(looked.view(torch.int32), unseen.view(torch.int32))

"""Control auxiliaries: like the original in every respect but knowledge."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from m2pt.pathway.controls import ControlKind, control_weights

KINDS: tuple[ControlKind, ...] = ("random", "permuted")


def _weights(scale: float = 0.02) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"blocks.0.attn.qkv.weight": (36, 12), "blocks.1.mlp.fc1.weight": (24, 12)}
    return {key: scale * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@given(st.integers(0, 2**63), st.floats(1e-6, 1e6))
def test_random_has_the_norm_of_each_matrix_and_nothing_else_of_it(seed: int, size: float) -> None:
    like = _weights(size)
    for key, drawn in control_weights("random", like, seed).items():
        assert drawn.shape == like[key].shape
        assert drawn.norm().item() == pytest.approx(like[key].norm().item(), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(drawn.flatten(), like[key].flatten(), dim=0)
        assert abs(cosine.item()) < 0.4


@given(st.integers(0, 2**63))
def test_permuted_has_the_rows_and_columns_in_another_order(seed: int) -> None:
    like = _weights()
    for key, drawn in control_weights("permuted", like, seed).items():
        assert not torch.equal(drawn, like[key])
        assert torch.equal(drawn.flatten().sort().values, like[key].flatten().sort().values)
        for dim in (0, 1):
            one, other = [weight.double().sum(dim).sort().values for weight in (drawn, like[key])]
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_key_and_original_decide_and_nothing_else(kind: ControlKind) -> None:
    like = _weights()
    first = control_weights(kind, like, 3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = control_weights(kind, dict(reversed(like.items())), 3)
    assert torch.equal(torch.get_rng_state(), state)
    alone = control_weights(kind, {key: w for key, w in like.items() if "fc1" in key}, 3)
    assert list(again) == list(reversed(first))
    assert all(torch.equal(first[key], again[key]) for key in like)
    assert all(torch.equal(first[key], weight) for key, weight in alone.items())
    other = control_weights(kind, like, 4)
    assert not any(torch.equal(first[key], other[key]) for key in like)
    renamed = control_weights(kind, {f"x.{key}": weight for key, weight in like.items()}, 3)
    assert not any(torch.equal(first[key], renamed[f"x.{key}"]) for key in like)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_stays_and_the_original_is_not_touched(kind: ControlKind, dtype: torch.dtype) -> None:
    like = {key: weight.to(dtype).requires_grad_() for key, weight in _weights().items()}
    before = {key: weight.detach().clone() for key, weight in like.items()}
    drawn = control_weights(kind, like, 0)
    assert all(weight.dtype == dtype and not weight.requires_grad for weight in drawn.values())
    assert all(torch.equal(like[key], before[key]) for key in like)


def test_the_draw_is_written_down() -> None:
    """Should this fail, controls drawn by an earlier version are no longer the same."""
    drawn = control_weights("random", {"w": torch.full((4, 4), 0.5)}, 1)["w"]
    order = control_weights("permuted", {"w": torch.arange(8.0)}, 1)["w"]
    assert drawn[0].tolist() == pytest.approx([-0.4162, -0.0098, 0.3520, 0.2174], abs=1e-4)
    assert order.tolist() == [3, 5, 6, 0, 4, 1, 2, 7]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="control: one of random, permuted, not 'zeros'"):
        control_weights("zeros", _weights(), 0)  # type: ignore[arg-type]  # the wrong kind is the point

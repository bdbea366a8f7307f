"""Joining a rival to a target, in place; asking about it; bringing it into the form it is used in.

Each kind lives in a module of its own: `composed` (CALM and GATS), `average`, `lora`.
"""

from collections.abc import Mapping

from torch import nn

from m2pt.pathway.auxiliary import Auxiliary
from m2pt.rivals import lora
from m2pt.rivals.average import average
from m2pt.rivals.composed import NAME, compose
from m2pt.rivals.config import Rival

_CONNECTIONS = f"{NAME}.connections."
_ADAPTERS = (".lora_A.", ".lora_B.")


def attach_rival(
    target: nn.Module, auxiliaries: Mapping[str, Auxiliary], rival: Rival, *, seed: int = 0
) -> nn.Module:
    """Join a rival to a target, in place. With CALM, GATS and LoRA the target's function stays the
    same, bit for bit, until it is trained.

    Parameters of the target stay the same objects. Auxiliary weights are copied, to the target's
    dtype and device; the auxiliaries themselves are neither changed nor kept.

    Args:
        target: a transformer with timm's `blocks`.
        auxiliaries: as `attach_pathway` has them; none for LoRA.
        rival: of a kind, and with a rank of its own (`size.matched`).
        seed: what the new parameters are drawn from.

    Returns:
        The target itself.

    Raises:
        ValueError: target, auxiliaries and rival do not fit each other. The target is then as it
            was.
    """
    _check(target, auxiliaries, rival)
    if rival.kind == "average":
        average(target, auxiliaries, rival)
    elif rival.kind == "lora":
        lora.adapt(target, rival, seed=seed)
    else:
        compose(target, dict(auxiliaries), rival, seed=seed)
    return target


def added_names(model: nn.Module) -> set[str]:
    """Names, as in `named_parameters`, of what a rival adds to be trained: connections, A and B."""
    return {
        name
        for name, _ in model.named_parameters()
        if name.startswith(_CONNECTIONS) or any(part in name for part in _ADAPTERS)
    }


def is_composed(model: nn.Module) -> bool:
    """Whether an auxiliary runs beside the model, so that it cannot be fused into a plain one."""
    return isinstance(getattr(model, NAME, None), nn.Module)


def merge_rival(model: nn.Module) -> nn.Module:
    """Fold what can be folded into the model's weights, in place: LoRA. Others stay as they are."""
    if added_names(model) and not is_composed(model):
        lora.merge(model)
    return model


def _check(target: nn.Module, auxiliaries: Mapping[str, Auxiliary], rival: Rival) -> None:
    if rival.kind is None:
        raise ValueError("rival.kind: null is no rival; leave it out")
    if is_composed(target) or added_names(target):
        raise ValueError("the target has a rival already")
    if rival.borrows != bool(auxiliaries):
        needs = "needs at least one auxiliary" if rival.borrows else "has no auxiliary"
        raise ValueError(f"rival.auxiliary: {rival.kind} {needs}, not {sorted(auxiliaries)}")
    if rival.rank == "matched" and rival.kind == "lora":
        raise ValueError("rival.rank: a number; `matched` turns the word into one")

"""Linear probing, "fix acc" in the paper's Table 1: λ and the head learn, and nothing else does.

Of a rival, what it adds learns beside the head: CALM and LoRA as they were published.

The official script does not train λ there, so that its figures are those of a plain linear probe.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from m2pt.pathway.reparam import auxiliary_names, frozen_auxiliary_names, scale_names
from m2pt.rivals.join import added_names

HEAD = "head"


def freeze(model: nn.Module) -> None:
    """Leave gradients to the head, to those λ values that are learned, and to what a rival adds."""
    kept = scale_names(model) | added_names(model)
    for name, parameter in model.named_parameters():
        if name not in kept and not name.startswith(f"{HEAD}."):
            parameter.requires_grad = False


def rest(model: nn.Module) -> None:
    """What is frozen runs as it does in evaluation: no drop path, and statistics stay."""
    model.eval()
    model.get_submodule(HEAD).train()


def unchanged_names(model: nn.Module) -> set[str]:
    """Parameters that training never changes: frozen auxiliaries, and a probe's frozen target.

    Optimiser, checkpoint and average leave them out. λ values are no part of it: a fixed one is
    kept, as its init may follow from the weights.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return frozen_auxiliary_names(model) | (frozen - auxiliary_names(model) - scale_names(model))


def learned(model: nn.Module) -> Mapping[str, Tensor]:
    """The entries of a state dict that training changes; parameters among them as parameters."""
    left_out = unchanged_names(model)
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if name not in left_out}

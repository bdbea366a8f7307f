"""LoRA, by peft: W + BA on a target's linears, A drawn and B zero.

What of the target is trained along, the recipe says, not peft. α is the rank, so that BA counts as
it is; there is no dropout, as nothing else of a trial has any.
"""

import torch
from torch import nn

from m2pt.pathway.auxiliary import blocks_of
from m2pt.pathway.coverage import layer_name, select
from m2pt.rivals.config import Rival


def adapt(target: nn.Module, rival: Rival, *, seed: int) -> None:
    """Put LoRA on the covered linears in place; the target's function stays the same.

    A is drawn from `seed`, and no random number of the caller's is used up.

    Raises:
        ValueError: the coverage does not fit the target.
    """
    from peft import LoraConfig, inject_adapter_in_model  # it takes seconds

    assert isinstance(rival.rank, int)  # `attach_rival` looked
    depth = len(blocks_of(target, "target"))
    layers = [layer_name(block, linear) for block, linear in select(rival.coverage, depth)]
    learned = [parameter for parameter in target.parameters() if parameter.requires_grad]
    config = LoraConfig(
        r=rival.rank, lora_alpha=rival.rank, lora_dropout=0.0, bias="none", target_modules=layers
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, target)
    for parameter in learned:  # peft freezes them
        parameter.requires_grad_(True)


def merge(target: nn.Module) -> None:
    """Fold every BA into its W, in place, and leave the plain target."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(target.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(target.get_submodule(parent), own, layer.get_base_layer())

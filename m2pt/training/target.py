"""The weights that a target starts from."""

from collections.abc import Mapping

from torch import Tensor, nn

from m2pt.pathway.auxiliary import blocks_of
from m2pt.pathway.config import Coverage
from m2pt.pathway.coverage import layer_name, select

BlockWeights = Mapping[str, Tensor]


def load_target(model: nn.Module, weights: BlockWeights) -> None:
    """Copy canonical block weights into every block; tokenizer, norms and head keep their own.

    So do biases that the weights are without.

    Raises:
        ValueError: a block's weight is missing, of another shape, or for a block that the model
            does not have; nothing is copied.
    """
    own = model.state_dict()
    depth = len(blocks_of(model, "target"))
    needed = [f"{layer_name(block, name)}.weight" for block, name in select(Coverage(), depth)]
    _refuse("are not in the weights", [name for name in needed if name not in weights], depth)
    unknown = [name for name in weights if name not in own]
    if unknown and all(name.endswith("qkv.bias") for name in unknown):
        raise ValueError(
            f"target: the weights have {unknown[0]}, and the model's qkv has no bias; set "
            "model.qkv_bias to true"
        )
    _refuse("are not in the model", unknown, depth)
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            raise ValueError(
                f"target: {name} has shape {tuple(weight.shape)} in the weights, but "
                f"{tuple(own[name].shape)} in the model; model.width and model.mlp_ratio must be "
                "those of the weights"
            )
    model.load_state_dict(dict(weights), strict=False)


def _refuse(what: str, names: list[str], depth: int) -> None:
    if names:
        raise ValueError(
            f"target: {', '.join(names[:3])} {what} ({len(names)} in all); model.depth is {depth} "
            "and must be that of the weights"
        )

"""Which linears of a target take part, which auxiliary block and which λ each of them meets."""

from typing import Literal

from m2pt.pathway.config import Coverage, LinearName, Scale, block_rule

LINEAR_PATHS: dict[LinearName, str] = {
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def layer_name(block: int, linear: LinearName) -> str:
    """The path of a linear from the transformer down, such as "blocks.3.mlp.fc1"."""
    return f"blocks.{block}.{LINEAR_PATHS[linear]}"


def select(coverage: Coverage, depth: int) -> tuple[tuple[int, LinearName], ...]:
    """The covered linears of a transformer with `depth` blocks, in the order of the model.

    Raises:
        ValueError: the coverage asks for a block, or for more blocks, than there are.
    """
    return tuple(
        (block, linear) for block in _blocks(coverage.blocks, depth) for linear in coverage.linears
    )


def mapping(rule: Literal["identity", "reversed"] | int, depth: int) -> tuple[int, ...]:
    """For each target block, the index of the auxiliary block that meets it.

    An int k shifts: target block i meets auxiliary block (i + k) mod depth.
    """
    if rule == "identity":
        return tuple(range(depth))
    if rule == "reversed":
        return tuple(reversed(range(depth)))
    return tuple((block + rule) % depth for block in range(depth))


def scale_group(scale: Scale, block: int, linear: LinearName) -> tuple[tuple[object, ...], int]:
    """The group of linears whose λ a linear shares, as a key, and the size n of that λ."""
    places = {"linear": (block, linear), "block": (block,), "global": ()}
    apart = scale.split_qkv and linear == "qkv"
    return (*places[scale.granularity], apart), 3 if apart else 1


def _blocks(blocks: str | tuple[int, ...], depth: int) -> tuple[int, ...]:
    if isinstance(blocks, tuple):
        if blocks[-1] >= depth:
            raise ValueError(
                f"blocks: block {blocks[-1]} is covered, but the target has {depth} blocks, "
                f"0 to {depth - 1}"
            )
        return blocks
    name, count = block_rule(blocks)
    if count > depth:
        raise ValueError(
            f"blocks: {blocks!r} needs {count} blocks, but the target has {depth}; "
            "'all' covers them all"
        )
    if name == "every":
        return tuple(range(0, depth, count))
    if name == "last":
        return tuple(range(depth - count, depth))
    return tuple(range(count if name == "first" else depth))

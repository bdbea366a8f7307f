"""Which linears of a target take part, which auxiliary block and which λ each of them meets."""

from collections.abc import Sequence

from m2pt.pathway.config import (
    BANDS,
    LINEARS,
    Coverage,
    LinearName,
    MappingName,
    Scale,
    block_rule,
)

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
    linears = [name for name in LINEARS if name in coverage.linears]
    if set(BANDS) & set(coverage.linears):
        linears.insert(0, "qkv")
    return tuple((block, linear) for block in _blocks(coverage.blocks, depth) for linear in linears)


def bands(coverage: Coverage, linear: LinearName) -> tuple[int, ...] | None:
    """Which thirds of a linear's rows (0: q, 1: k, 2: v) are covered; None is all of it."""
    if linear != "qkv" or "qkv" in coverage.linears:
        return None
    return tuple(place for place, name in enumerate(BANDS) if name in coverage.linears)


def mapping(
    rule: MappingName | int | tuple[int, ...], depth: int, auxiliary_depth: int | None = None
) -> tuple[int, ...]:
    """For each of `depth` target blocks, the index of the auxiliary block that meets it.

    An int k shifts: target block i meets auxiliary block (i + k) mod depth. `stretched` and lists
    allow an auxiliary of another depth; without one, it has the target's.

    Raises:
        ValueError: the depths differ and the rule is for equal ones, or a list does not fit.
    """
    theirs = depth if auxiliary_depth is None else auxiliary_depth
    if isinstance(rule, tuple):
        if len(rule) != depth or max(rule) >= theirs:
            raise ValueError(
                f"mapping: {list(rule)} must name one of the auxiliary's blocks 0 to {theirs - 1} "
                f"for each of the target's {depth} blocks"
            )
        return rule
    if rule == "stretched":
        if depth == 1:
            return (theirs - 1,)
        return tuple((2 * i * (theirs - 1) + depth - 1) // (2 * (depth - 1)) for i in range(depth))
    if theirs != depth:
        raise ValueError(
            f"mapping: the auxiliary has {theirs} blocks and the target {depth}, so none can be "
            f"left out silently: {rule!r} is for equal depths; take stretched or a list of blocks"
        )
    if rule == "identity":
        return tuple(range(depth))
    if rule == "reversed":
        return tuple(reversed(range(depth)))
    return tuple((block + rule) % depth for block in range(depth))


def scale_group(scale: Scale, block: int, linear: LinearName) -> tuple[object, ...]:
    """The group of linears whose λ a linear shares, as a key."""
    places = {"linear": (block, linear), "block": (block,), "global": ()}
    return (*places[scale.granularity], scale.split_qkv and linear == "qkv")


def scale_places(
    coverage: Coverage, scale: Scale, linear: LinearName
) -> tuple[int, tuple[int | None, ...] | None]:
    """How many numbers λ of a linear is, and for each third of its rows the one that scales it.

    None for a third that is not covered; None altogether where there is one band of rows for each
    number, in order.
    """
    apart = scale.split_qkv and linear == "qkv"
    some = bands(coverage, linear)
    if some is None:
        return (3 if apart else 1), None
    numbers = {band: at if apart else 0 for at, band in enumerate(some)}
    return (len(some) if apart else 1), tuple(numbers.get(band) for band in range(3))


def spread(init: float | Sequence[float], block: int, depth: int) -> float:
    """The start of λ in a block: `init`, or its numbers laid over the depth with straight lines."""
    if isinstance(init, int | float):
        return float(init)
    at = block / max(1, depth - 1) * (len(init) - 1)
    left = min(int(at), len(init) - 2)
    return float(init[left] + (at - left) * (init[left + 1] - init[left]))


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

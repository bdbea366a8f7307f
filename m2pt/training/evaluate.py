"""How well a model does on samples that it does not learn from."""

from collections.abc import Iterator
from contextlib import closing
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from m2pt.data.samples import Readable
from m2pt.training.batches import global_batches, share
from m2pt.training.numerics import arithmetic, contained, dtype_of
from m2pt.training.progress import beat
from m2pt.training.recipe import Numerics
from m2pt.training.world import World, sum_over


def evaluate(
    model: nn.Module,
    samples: Readable,
    batch_size: int,
    numerics: Numerics,
    *,
    world: World = World(),  # noqa: B008  # a frozen value
) -> dict[str, float]:
    """`loss` (mean cross-entropy) and `accuracy` (0 to 1) over all samples.

    Every rank calls this, computes its share in batches of `batch_size` and gets the same answer.
    """
    everything = torch.arange(len(samples))
    own = share(everything, world.rank, world.size)
    idle = _idle(everything, batch_size, world)
    # loss summed over samples, correct predictions, samples; float64 adds up without a trace
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    with contained(numerics, world.device):
        outputs = _outputs(model, samples, own, batch_size, numerics=numerics, world=world)
        for output, labels in outputs:
            sums[0] += cross_entropy(output, labels, reduction="sum")
            sums[1] += (output.argmax(dim=1) == labels).sum()
            sums[2] += len(labels)
        if len(idle):
            list(_outputs(model, samples, idle, 1, numerics=numerics, world=world))
    loss, correct, seen = sum_over(world, sums).tolist()
    return {"loss": loss / seen, "accuracy": correct / seen}


def logits(
    model: nn.Module, samples: Readable, batch_size: int, numerics: Numerics, *, device: str = "cpu"
) -> Tensor:
    """Outputs (N, classes) for all samples in order, on the CPU, in float32 (fp64: float64)."""
    everything = torch.arange(len(samples))
    with contained(numerics, device):
        world = World(device=device)
        outputs = _outputs(model, samples, everything, batch_size, numerics=numerics, world=world)
        return torch.cat([output.cpu() for output, _ in outputs])


def _idle(everything: Tensor, batch_size: int, world: World) -> Tensor:
    """Samples to compute in batches of one for nothing: ranks that hold parts of one model must all
    compute equally often, and this one has less to do than the first.
    """
    if not world.shards:
        return everything[:0]
    first, own = (len(share(everything, rank, world.size)) for rank in (0, world.rank))
    return everything[:1].repeat(ceil(first / batch_size) - ceil(own / batch_size))


def _outputs(
    model: nn.Module,
    samples: Readable,
    indices: Tensor,
    batch_size: int,
    *,
    numerics: Numerics,
    world: World,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (B, classes), labels (B,)) batch by batch."""
    dtype = dtype_of(numerics)
    training = model.training
    model.eval()
    try:
        pieces = global_batches(indices, batch_size)
        with closing(samples.stream(pieces, workers=world.loader_workers)) as read:
            for inputs, labels in read:
                beat()
                inputs = inputs.to(world.device, dtype, non_blocking=True)
                with torch.no_grad(), arithmetic(numerics, world.device):
                    output = model(inputs)
                yield output.to(dtype), labels.to(world.device, non_blocking=True)
    finally:
        model.train(training)

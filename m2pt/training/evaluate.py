"""How well a model does on samples that it does not learn from."""

from collections.abc import Iterator
from contextlib import closing
from math import ceil

import torch
from torch import Tensor, nn

from m2pt.data.samples import Readable
from m2pt.training.batches import global_batches, share
from m2pt.training.numerics import arithmetic, contained, dtype_of
from m2pt.training.progress import beat
from m2pt.training.recipe import Numerics
from m2pt.training.tasks import LEARNING
from m2pt.training.world import World, sum_over


def evaluate(
    model: nn.Module,
    samples: Readable,
    batch_size: int,
    numerics: Numerics,
    *,
    world: World = World(),  # noqa: B008  # a frozen value
) -> dict[str, float]:
    """`loss` (the mean of a sample's) and the task's figures (0 to 1) over all samples.

    Every rank calls this, computes its share in batches of `batch_size` and gets the same answer.
    """
    info, learning = samples.info, LEARNING[samples.info.task]
    everything = torch.arange(len(samples))
    own = share(everything, world.rank, world.size)
    idle = _idle(everything, batch_size, world)
    # float64 adds up without a trace, and what only one rank knows is 0 on the others
    loss = torch.zeros(1, dtype=torch.float64, device=world.device)
    notes = loss.new_zeros(len(samples), learning.notes(info))
    noted = int(own[0]) if len(own) else 0
    with contained(numerics, world.device):
        outputs = _outputs(model, samples, own, batch_size, numerics=numerics, world=world)
        for output, labels in outputs:
            loss += learning.loss(output, labels, 0.0)
            notes[noted : noted + len(labels)] = learning.note(output, labels, info)
            noted += len(labels)
        if len(idle):
            list(_outputs(model, samples, idle, 1, numerics=numerics, world=world))
        mean = float(sum_over(world, loss)) / len(samples)
        return {"loss": mean, **learning.figures(sum_over(world, notes), info)}


def logits(
    model: nn.Module, samples: Readable, batch_size: int, numerics: Numerics, *, device: str = "cpu"
) -> Tensor:
    """Outputs (N, ...) for all samples in order, on the CPU, in float32 (fp64: float64)."""
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
    """(logits (B, ...), labels (B, ...)) batch by batch."""
    dtype, given = dtype_of(numerics), LEARNING[samples.info.task].given
    training = model.training
    model.eval()
    try:
        pieces = global_batches(indices, batch_size)
        with closing(samples.stream(pieces, workers=world.loader_workers)) as read:
            for inputs, labels in read:
                beat()
                inputs = inputs.to(world.device, dtype, non_blocking=True)
                labels = labels.to(world.device, non_blocking=True)
                with torch.no_grad(), arithmetic(numerics, world.device):
                    output = model(inputs, *given(labels))
                yield output.to(dtype), labels
    finally:
        model.train(training)

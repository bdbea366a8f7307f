"""The figures of given outputs, and how far rounding could move them.

B: batch, N: all samples, C: classes, K: points of a cloud, P: parts.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from m2pt.data.config import DataInfo, Task
from m2pt.training.tasks import LEARNING

_BATCH = 128

_TRUE: Mapping[Task, Callable[[Tensor, DataInfo], Tensor]] = {
    "classes": lambda labels_B, info: one_hot(labels_B, info.classes),
    "labels": lambda labels_BC, info: labels_BC,
    "parts": lambda labels_B1K, info: one_hot(labels_B1K[:, 1:], info.outputs),
}
"""Labels to which logits speak for the truth: 1 there, 0 elsewhere, of the outputs' shape."""


def figures(
    outputs: Tensor, labels: Tensor, info: DataInfo, shift: float = 0.0
) -> dict[str, float]:
    """`loss` and the task's figures of outputs (N, ...), as `evaluate` tells them.

    With `shift` each logit that speaks for the truth is raised by it and each other one lowered.
    Whatever changes no logit by more than that cannot give better figures; and, of `-shift`, none
    that are worse: every figure of every task only gains where true logits rise, others fall.
    """
    learning, true = LEARNING[info.task], _TRUE[info.task]
    loss, notes = 0.0, []
    for start in range(0, len(outputs), _BATCH):
        cut = slice(start, start + _BATCH)
        output, told = outputs[cut], labels[cut]
        if shift:
            output = torch.where(true(told, info) != 0, output + shift, output - shift)
        loss += float(learning.loss(output, told, 0.0).double())
        notes.append(learning.note(output, told, info).double())
    found = learning.figures(torch.cat(notes), info)
    return {"loss": loss / len(outputs), **found}

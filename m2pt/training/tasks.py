"""What a task asks of training and evaluation: its loss, what is noted of each sample, its figures.

A figure is worked out from the notes of all samples at once, so it is exact however many workers
made them. B: batch, N: all samples, C: classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from m2pt.data.config import DataInfo, Task


@dataclass(frozen=True)
class Learning:
    """One task.

    Attributes:
        loss: (outputs, targets, label smoothing) to the loss, summed over samples; the targets are
            a batch's labels, or what `mixing` made of them.
        notes: how many numbers are noted of a sample.
        note: (outputs, labels) of a batch to its notes (B, notes).
        figures: the notes (N, notes) float64 of all samples to what is reported, by name
            (`m2pt.data.config.FIGURES`).
        decide: (outputs, labels) of any number of samples to what the outputs say.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    notes: Callable[[DataInfo], int]
    note: Callable[[Tensor, Tensor, DataInfo], Tensor]
    figures: Callable[[Tensor, DataInfo], dict[str, float]]
    decide: Callable[[Tensor, Tensor, DataInfo], "Decisions"]


@dataclass(frozen=True)
class Decisions:
    """What outputs say of N samples, each in M ways: its class, or each class that it may have.

    Attributes:
        answers, truth: (N, M).
        margins: (N, M), how far apart the two logits are that decide.
    """

    answers: Tensor
    truth: Tensor
    margins: Tensor


def mean_average_precision(scores_NC: Tensor, truth_NC: Tensor) -> float:
    """Mean over classes of average precision; NaN where no class has a positive sample.

    Average precision is the sum over thresholds of precision times the gain in recall, without
    interpolation, as scikit-learn's `average_precision_score` and AudioMAE have it; samples of
    equal score stand or fall together. Classes without a positive sample are left out. In place of
    scikit-learn's, which takes ten times as long on 527 classes and computes on the CPU alone.
    """
    positives_C = truth_NC.count_nonzero(dim=0)
    found = positives_C > 0
    scores_NC, truth_NC, positives_C = scores_NC[:, found], truth_NC[:, found], positives_C[found]
    ordered, order = scores_NC.sort(dim=0, descending=True)
    hits = (truth_NC.gather(0, order) != 0).long().cumsum(dim=0)
    ranks = torch.arange(1, len(hits) + 1, device=hits.device)[:, None]
    ends = torch.ones_like(hits, dtype=torch.bool)  # of a run of equal scores
    ends[:-1] = ordered[1:] != ordered[:-1]
    reached = torch.where(ends, hits, 0).cummax(dim=0).values
    gained = reached.diff(dim=0, prepend=torch.zeros_like(hits[:1]))
    each_C = (gained * hits.double() / ranks).sum(dim=0) / positives_C
    return float(each_C.mean())


def _class_loss(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return cross_entropy(outputs, targets, reduction="sum", label_smoothing=smoothing)


def _right(outputs_BC: Tensor, labels_B: Tensor, _: DataInfo) -> Tensor:
    return (outputs_BC.argmax(dim=1) == labels_B)[:, None]


def _class_of(outputs_BC: Tensor, labels_B: Tensor, _: DataInfo) -> Decisions:
    best = outputs_BC.topk(2, dim=1).values
    answers = outputs_BC.argmax(dim=1)
    return Decisions(answers[:, None], labels_B[:, None], best[:, :1] - best[:, 1:])


def _set_loss(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Binary cross-entropy, the mean over classes, as in AudioMAE; smoothed as timm does."""
    wanted = targets.to(outputs.dtype) * (1 - smoothing) + 0.5 * smoothing
    return binary_cross_entropy_with_logits(outputs, wanted, reduction="sum") / outputs.shape[1]


def _scores_and_truth(outputs_BC: Tensor, labels_BC: Tensor, _: DataInfo) -> Tensor:
    return torch.cat([outputs_BC, labels_BC.to(outputs_BC.dtype)], dim=1)


def _set_of(outputs_BC: Tensor, labels_BC: Tensor, _: DataInfo) -> Decisions:
    """A class is of the set where its logit is above 0: that is decided against 0."""
    return Decisions((outputs_BC > 0).to(labels_BC.dtype), labels_BC, 2 * outputs_BC.abs())


LEARNING: dict[Task, Learning] = {
    "classes": Learning(
        loss=_class_loss,
        notes=lambda info: 1,
        note=_right,
        figures=lambda notes, info: {"accuracy": float(notes.mean())},
        decide=_class_of,
    ),
    "labels": Learning(
        loss=_set_loss,
        notes=lambda info: 2 * info.classes,
        note=_scores_and_truth,
        figures=lambda notes, info: {"map": mean_average_precision(*notes.chunk(2, dim=1))},
        decide=_set_of,
    ),
}

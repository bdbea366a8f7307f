"""What a task asks of training and evaluation: its loss, what is noted of each sample, its figures.

A figure is worked out from the notes of all samples at once, so it is exact however many workers
made them. B: batch, N: all samples, C: classes or categories, K: points of a cloud, P: parts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from m2pt.data.config import DataInfo, Task, part_bounds


@dataclass(frozen=True)
class Learning:
    """One task.

    Attributes:
        given: labels to what the model is given beside the samples.
        loss: (outputs, targets, label smoothing) to the loss, summed over samples; the targets are
            a batch's labels, or what `mixing` made of them.
        notes: how many numbers are noted of a sample.
        note: (outputs, labels) of a batch to its notes (B, notes).
        figures: the notes (N, notes) float64 of all samples to what is reported, by name
            (`m2pt.data.config.FIGURES`).
        decide: (outputs, labels) of any number of samples to what the outputs say.
    """

    given: Callable[[Tensor], tuple[Tensor, ...]]
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
    equal score stand or fall together. Classes without a positive sample are left out. Not
    scikit-learn's own, because this is worked out after every epoch, where the scores are: on
    AudioSet's 18,886 test clips and 527 classes one CPU takes 2.2 s (scikit-learn 3.3 s).
    """
    found = truth_NC.count_nonzero(dim=0) > 0
    scores_CN, truth_CN = (of.T[found].contiguous() for of in (scores_NC, truth_NC))
    ordered, order = scores_CN.sort(dim=1, descending=True)
    hits = (truth_CN != 0).gather(1, order).cumsum(dim=1)
    ends = torch.ones_like(hits, dtype=torch.bool)  # of a run of equal scores
    ends[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    reached = torch.where(ends, hits, 0).cummax(dim=1).values
    gained = reached.diff(dim=1, prepend=torch.zeros_like(hits[:, :1]))
    precision = hits.double() / torch.arange(1, hits.shape[1] + 1, device=hits.device)
    each_C = (gained * precision).sum(dim=1) / hits[:, -1]
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


def _category(labels_B1K: Tensor) -> tuple[Tensor]:
    return (labels_B1K[:, 0],)


def _part_loss(outputs_BKP: Tensor, labels_B1K: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy over all parts, the mean over points."""
    parts = labels_B1K[:, 1:].flatten()
    flat = outputs_BKP.flatten(0, 1)
    whole = cross_entropy(flat, parts, reduction="sum", label_smoothing=smoothing)
    return whole / outputs_BKP.shape[1]


def _parts_of(outputs_BKP: Tensor, labels_B1K: Tensor, info: DataInfo) -> Decisions:
    """Only the parts of a cloud's category can be the answer."""
    able = outputs_BKP.masked_fill(~_own_parts(labels_B1K, info)[:, None], -torch.inf)
    best = able.topk(2, dim=2).values
    return Decisions(able.argmax(dim=2), labels_B1K[:, 1:], best[..., 0] - best[..., 1])


def _own_parts(labels_B1K: Tensor, info: DataInfo) -> Tensor:
    """Whether a part is of the sample's category, (B, P)."""
    bounds = torch.tensor(part_bounds(info.parts), device=labels_B1K.device)
    parts, category = torch.arange(info.outputs, device=bounds.device), labels_B1K[:, :1]
    return (bounds[category] <= parts) & (parts < bounds[category + 1])


def _iou_and_category(outputs_BKP: Tensor, labels_B1K: Tensor, info: DataInfo) -> Tensor:
    """A cloud's mean over the parts of its category of intersection over union.

    As for ShapeNetPart since PointNet: a part that neither the answer nor the truth has counts 1.
    """
    found = _parts_of(outputs_BKP, labels_B1K, info)
    said, true = (one_hot(part, info.outputs).bool() for part in (found.answers, found.truth))
    both, either = (said & true).sum(dim=1).double(), (said | true).sum(dim=1)
    each_BP = torch.where(either == 0, 1.0, both / either.clamp(min=1))
    own_BP = _own_parts(labels_B1K, info)
    mean_B = (each_BP * own_BP).sum(dim=1) / own_BP.sum(dim=1)
    return torch.stack([mean_B, labels_B1K[:, 0].double()], dim=1)


def _mean_iou(notes_N2: Tensor, info: DataInfo) -> dict[str, float]:
    """The mean over clouds, and that over categories of the mean over their clouds."""
    iou_N, category_N = notes_N2.unbind(dim=1)
    means = [iou_N[category_N == number] for number in range(info.classes)]
    by_category = torch.stack([one.mean() for one in means if len(one)])
    return {"miou": float(iou_N.mean()), "class_miou": float(by_category.mean())}


LEARNING: dict[Task, Learning] = {
    "classes": Learning(
        given=lambda labels: (),
        loss=_class_loss,
        notes=lambda info: 1,
        note=_right,
        figures=lambda notes, info: {"accuracy": float(notes.mean())},
        decide=_class_of,
    ),
    "labels": Learning(
        given=lambda labels: (),
        loss=_set_loss,
        notes=lambda info: 2 * info.classes,
        note=_scores_and_truth,
        figures=lambda notes, info: {"map": mean_average_precision(*notes.chunk(2, dim=1))},
        decide=_set_of,
    ),
    "parts": Learning(
        given=_category,
        loss=_part_loss,
        notes=lambda info: 2,
        note=_iou_and_category,
        figures=_mean_iou,
        decide=_parts_of,
    ),
}

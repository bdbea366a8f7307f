"""Tasks other than one class for each sample: figures, losses, training, export."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2pt.data.config import DataConfig, DataInfo, Task
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.models.build import build_model
from m2pt.models.config import NormKind, Tokenizer
from m2pt.pathway.config import Pathway, Scale
from m2pt.pathway.reparam import attach_pathway, fuse_pathway, scales
from m2pt.training.evaluate import evaluate, logits
from m2pt.training.loop import Training
from m2pt.training.mixing import build_mix
from m2pt.training.recipe import Numerics, Recipe, TrainingConfig
from m2pt.training.tasks import LEARNING, mean_average_precision
from orchestrator.promotion.export import Identity, Trained, export_model
from orchestrator.promotion.load_model import load_model
from tests.numerics.training_setup import FP64, MODEL, block_weights

pytestmark = pytest.mark.slow

SCENES = TrainingConfig(
    replace(MODEL, width=32, tokenizer=Tokenizer(patch=8)),
    DataConfig("scenes"),
    recipe=Recipe(epochs=3, batch_size=32, learning_rate=3e-3),
)

OBJECTS = TrainingConfig(
    replace(MODEL, width=32, depth=3, tokenizer=Tokenizer(groups=16, group_size=8)),
    DataConfig("shape-parts"),
    recipe=Recipe(epochs=3, batch_size=16, learning_rate=3e-3),
)


def expected_map(scores: Tensor, truth: Tensor) -> float:
    from sklearn.metrics import average_precision_score  # the fast tests are spared the import

    found = truth.bool().any(dim=0)
    each = average_precision_score(truth[:, found].numpy(), scores[:, found].numpy(), average=None)
    return float(np.mean(each))


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32))
def test_mean_average_precision_is_scikit_learns(
    samples: int, classes: int, levels: int, seed: int
) -> None:
    """Few levels make many equal scores."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (samples, classes), generator=draw) / levels - 0.3
    truth = torch.randint(0, 2, (samples, classes), generator=draw)
    truth[0, 0] = 1
    found = mean_average_precision(scores.double(), truth.double())
    with warnings.catch_warnings():  # classes without a negative sample are no trouble
        warnings.simplefilter("ignore")
        assert found == pytest.approx(expected_map(scores, truth), rel=1e-12)


def test_without_positive_samples_there_is_no_average_precision() -> None:
    assert np.isnan(mean_average_precision(torch.zeros(4, 2), torch.zeros(4, 2)))


def test_the_loss_of_sets_is_the_mean_over_classes_and_samples() -> None:
    outputs = torch.tensor([[0.3, -2.0], [1.5, 0.0], [-0.7, 4.0]], dtype=torch.float64)
    labels = torch.tensor([[1, 0], [1, 1], [0, 0]], dtype=torch.uint8)
    found = LEARNING["labels"].loss(outputs, labels, 0.0) / 3
    wanted = torch.nn.BCEWithLogitsLoss()(outputs, labels.double())
    torch.testing.assert_close(found, wanted)
    smoothed = LEARNING["labels"].loss(outputs, labels, 0.2) / 3
    wanted = torch.nn.BCEWithLogitsLoss()(outputs, labels.double() * 0.8 + 0.1)
    torch.testing.assert_close(smoothed, wanted)


@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixed_sets_are_between_the_two(count: int, mixing: dict[str, float]) -> None:
    data = load(SCENES.data)
    mix = build_mix(Recipe(**mixing, label_smoothing=0.1), data.info)  # type: ignore[arg-type]  # floats of a table
    assert mix is not None
    samples, labels = data.train.batch(range(count))
    mixed, targets = mix(samples.clone(), labels)
    smooth = labels * 0.9 + 0.05
    part = (mixed - samples.flip(0)).norm() / max(1e-9, float((samples - samples.flip(0)).norm()))
    assert mixed.shape == samples.shape
    low, high = torch.minimum(smooth, smooth.flip(0)), torch.maximum(smooth, smooth.flip(0))
    assert ((targets >= low - 1e-6) & (targets <= high + 1e-6)).all()
    if count % 2 == 0 and "mixup" in mixing:
        torch.testing.assert_close(targets, part * smooth + (1 - part) * smooth.flip(0))


def test_sets_are_learned() -> None:
    data = load(SCENES.data)
    *_, last = Training(SCENES, data, {}).epochs()
    assert set(last.metrics) == {"train/loss", "val/loss", "val/map", "learning_rate"}
    assert last.metrics["val/map"] > 1.6 * float(data.validation.labels.double().mean())


def test_the_figure_is_that_of_all_outputs_whatever_the_batch() -> None:
    data, model = load(SCENES.data), Training(SCENES, load(SCENES.data), {}).model.double()
    found = [evaluate(model, data.test, size, FP64)["map"] for size in (7, 100)]
    scores = logits(model, data.test, 64, FP64)
    assert found == pytest.approx([expected_map(scores, data.test.labels)] * 2, rel=1e-12)


def trained(config: TrainingConfig, data: Dataset) -> tuple[Trained, Training]:
    """Two epochs with a pathway whose λ is not zero."""
    pathway = Pathway(scale=Scale(init=0.1))
    config = replace(config, pathway=pathway, recipe=replace(config.recipe, epochs=2))
    auxiliaries = {"image": block_weights(model=replace(config.model, tokenizer=MODEL.tokenizer))}
    training = Training(config, data, auxiliaries)
    for _ in training.epochs():
        pass
    return Trained(config, training.capture(), auxiliaries), training


TWO_CATEGORIES = DataInfo(
    "point",
    (4, 3),
    2,
    ("mug", "table"),
    "",
    "parts",
    (("body", "handle"), ("top", "legs", "drawer")),
)
CLOUDS = torch.tensor(
    [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 2, 2, 3, 3]]  # the category, and four points' parts
)


def logits_for(answers: list[list[int]]) -> Tensor:
    """The highest logit is for a part of another category, the second for the answer."""
    outputs = torch.zeros(3, 4, 5)
    for cloud, parts in enumerate(answers):
        for point, part in enumerate(parts):
            outputs[cloud, point, part] = 1.0
            outputs[cloud, point, 4 if cloud < 2 else 0] = 2.0
    return outputs


def test_intersection_over_union_by_hand() -> None:
    """Cloud 0: body 1/3, handle 1/2. Cloud 1: body 1, handle is in neither: 1.
    Cloud 2: top 2/3, legs 1/2, drawer is in neither: 1."""
    parts = LEARNING["parts"]
    outputs = logits_for([[0, 1, 1, 1], [0, 0, 0, 0], [2, 2, 2, 3]])
    notes = parts.note(outputs, CLOUDS, TWO_CATEGORIES)
    clouds = [(1 / 2 + 2 / 3) / 2, 1.0, (2 / 3 + 1 / 2 + 1) / 3]
    assert notes.dtype == torch.float64
    assert notes[:, 0].tolist() == pytest.approx(clouds, rel=1e-12)
    found = parts.figures(notes, TWO_CATEGORIES)
    assert found["miou"] == pytest.approx(sum(clouds) / 3, rel=1e-12)
    assert found["class_miou"] == pytest.approx(((clouds[0] + 1.0) / 2 + clouds[2]) / 2, rel=1e-12)
    one_category = parts.figures(notes[:2], TWO_CATEGORIES)  # the other is left out
    assert one_category["class_miou"] == one_category["miou"]


def test_a_part_that_is_said_and_not_there_counts_nothing() -> None:
    outputs = logits_for([[0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 3, 4]])
    notes = LEARNING["parts"].note(outputs, CLOUDS, TWO_CATEGORIES)
    assert notes[:, 0].tolist() == pytest.approx([1.0, (3 / 4 + 0) / 2, (1 + 1 / 2 + 0) / 3])
    assert notes[:, 1].tolist() == [0, 0, 1]


def test_the_loss_of_parts_is_the_mean_over_points_of_all_parts() -> None:
    outputs = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = LEARNING["parts"].loss(outputs, CLOUDS, 0.0) / 3
    log_softmax = outputs.log_softmax(dim=2).transpose(1, 2)
    torch.testing.assert_close(found, torch.nn.functional.nll_loss(log_softmax, CLOUDS[:, 1:]))


def test_parts_are_trained_and_evaluated() -> None:
    config = replace(OBJECTS, data=replace(OBJECTS.data, limit=16, augment="standard"))
    report = next(iter(Training(config, load(config.data), {}).epochs()))
    figures = {"val/loss", "val/miou", "val/class_miou"}
    assert set(report.metrics) == {"train/loss", "learning_rate", *figures}
    assert 0 < report.metrics["val/class_miou"] < 1


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_parts_are_learned(norm: NormKind) -> None:
    tokenizer = replace(OBJECTS.model.tokenizer, norm=norm)
    config = replace(OBJECTS, model=replace(OBJECTS.model, tokenizer=tokenizer))
    data = load(config.data)
    training = Training(config, data, {})
    before = evaluate(training.model, data.validation, 64, config.numerics)["miou"]
    *_, last = training.epochs()
    assert last.metrics["val/miou"] > max(2 * before, largest_part_alone(data))


def largest_part_alone(data: Dataset) -> float:
    """What it comes to when every point is said to be of its category's most frequent part."""
    labels, info = data.validation.labels, data.info
    frequent = {
        category: int(labels[labels[:, 0] == category, 1:].flatten().bincount().argmax())
        for category in range(info.classes)
    }
    outputs = torch.zeros(len(labels), info.shape[0], info.outputs)
    for number, category in enumerate(labels[:, 0].tolist()):
        outputs[number, :, frequent[category]] = 1.0
    notes = LEARNING["parts"].note(outputs, labels, info)
    return LEARNING["parts"].figures(notes, info)["miou"]


def test_a_pathway_attaches_to_part_segmentation_and_fuses() -> None:
    data = load(OBJECTS.data)
    model = build_model(OBJECTS.model, data.info, seed=0).double().eval()
    points, labels = data.test.batch(range(3))
    inputs = (points.double(), labels[:, 0])
    plain, keys = model(*inputs), list(model.state_dict())
    auxiliary = {"image": block_weights(model=replace(OBJECTS.model, tokenizer=Tokenizer(patch=4)))}
    attach_pathway(model, auxiliary, Pathway())
    assert len(scales(model)) == 12
    assert torch.equal(model(*inputs), plain)
    with torch.no_grad():
        for value in scales(model).values():
            value.fill_(0.3)
    borrowed = model(*inputs)
    assert not torch.allclose(borrowed, plain, atol=1e-2)
    fuse_pathway(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(*inputs), borrowed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task", ["labels", pytest.param("parts", marks=pytest.mark.slow)])
def test_an_export_is_proved_whatever_the_shape_of_its_logits(task: Task, tmp_path: Path) -> None:
    config = {"labels": SCENES, "parts": OBJECTS}[task]
    config = replace(config, data=replace(config.data, limit=64))
    data = load(config.data)
    trial, training = trained(config, data)
    export = export_model(trial, data, Identity("0" * 12, "f" * 64), prove_on_test=True)
    proof = export.proof
    assert proof.failures() == []
    assert proof.test is not None
    assert proof.test.accuracy_exported == proof.test.accuracy_trained > 0.5
    for name, content in export.files().items():
        (tmp_path / name).write_bytes(content)
    loaded = load_model(tmp_path)
    numerics = Numerics()
    wanted = logits(training.model, data.test, 64, numerics)
    torch.testing.assert_close(logits(loaded, data.test, 64, numerics), wanted, atol=1e-5, rtol=0)

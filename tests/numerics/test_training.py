"""The loop on real digits: what it learns, what it reports, and what it leaves behind."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.models.config import ModelConfig
from m2pt.pathway.config import Envelope, Pathway, Scale
from m2pt.pathway.reparam import auxiliary_names, effective_scales, scales
from m2pt.training import metrics, numerics
from m2pt.training.evaluate import evaluate, logits
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, Precision, TrainingConfig
from tests.numerics.training_setup import (
    FP64,
    MODEL,
    block_weights,
    config_of,
    digits,
    same_bits,
    training_of,
)

FROZEN = Pathway(trainable=False, scale=Scale(init=0.1))


def test_the_same_training_twice_is_the_same_bit_for_bit() -> None:
    runs = [training_of(config_of(Pathway())) for _ in range(2)]
    losses = [[report.metrics for report in run.epochs()] for run in runs]
    assert losses[0] == losses[1]
    assert same_bits(runs[0].model.state_dict(), runs[1].model.state_dict())


def test_it_learns_and_reports_what_it_promises() -> None:
    training = training_of(config_of(Pathway(), epochs=12))
    reports = list(training.epochs())
    first, last = reports[0], reports[-1]
    assert [report.epoch for report in reports] == list(range(1, 13))
    assert last.metrics["train/loss"] < 0.8 * first.metrics["train/loss"]
    assert last.metrics["val/accuracy"] > 0.3
    assert set(last.metrics) == {
        "train/loss",
        "val/loss",
        "val/accuracy",
        "learning_rate",
        "pathway/norm_ratio",
    }
    assert set(last.seconds) == {"train", "evaluate"}
    assert len(last.scales) == 8
    assert last.scales["lambda/1.fc2"] != 0.0
    assert last.metrics["pathway/norm_ratio"] > 0
    assert list(training.epochs()) == []


def test_a_baseline_reports_no_pathway() -> None:
    (report, _) = training_of(config_of()).epochs()
    assert report.scales == {}
    assert "pathway/norm_ratio" not in report.metrics


@pytest.mark.parametrize("accumulate", [3, 5])
def test_gradient_accumulation_changes_nothing_short_last_batch_included(accumulate: int) -> None:
    whole = training_of(replace(config_of(Pathway()), numerics=FP64))
    split = training_of(replace(config_of(Pathway(), accumulate=accumulate), numerics=FP64))
    found = [list(run.epochs())[-1].metrics for run in (whole, split)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    outputs = [logits(run.model, digits().validation, 64, FP64) for run in (whole, split)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)


def test_the_reported_training_loss_is_the_mean_over_samples() -> None:
    config = replace(config_of(learning_rate=1e-30, min_learning_rate=0.0), numerics=FP64)
    training = training_of(config)
    expected = evaluate(training.model, digits().train, 1000, FP64)["loss"]
    report = next(iter(training.epochs()))
    assert report.metrics["train/loss"] == pytest.approx(expected, rel=1e-12)


def test_a_frozen_auxiliary_stays_as_it_is_and_a_trainable_one_does_not() -> None:
    for pathway, changes in ((FROZEN, False), (replace(FROZEN, trainable=True), True)):
        training = training_of(config_of(pathway))
        name = next(n for n, p in training.model.named_parameters() if _is_auxiliary(n))
        before = training.model.get_parameter(name).clone()
        list(training.epochs())
        assert torch.equal(before, training.model.get_parameter(name)) is not changes


def _is_auxiliary(name: str) -> bool:
    return name in auxiliary_names(training_of(config_of(FROZEN)).model)


def test_a_held_scale_is_no_longer_learned_while_all_else_is() -> None:
    envelope = Envelope(kind="hold", until=0.5)
    training = training_of(config_of(Pathway(scale=Scale(init=0.05, envelope=envelope)), epochs=4))
    seen = []
    for _ in training.epochs():
        head = training.model.get_parameter("head.weight").detach().clone()
        seen.append(([s.detach().clone() for s in scales(training.model).values()], head))
    moved = [
        any(not torch.equal(a, b) for a, b in zip(seen[i][0], seen[i + 1][0], strict=True))
        for i in range(3)
    ]
    assert moved == [True, False, False]
    assert not torch.equal(seen[2][1], seen[3][1])


def test_the_model_ends_with_the_envelope_of_the_end() -> None:
    pathway = Pathway(scale=Scale(init=0.1, envelope=Envelope(kind="anneal")))
    training = training_of(config_of(pathway))
    reports = list(training.epochs())
    assert abs(reports[0].scales["lambda/0.qkv"]) > 0.01
    assert set(reports[-1].scales.values()) == {0.0}
    assert all(not value.any() for value in effective_scales(training.model).values())


def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_step() -> None:
    training = training_of(config_of(learning_rate=1e30, warmup_epochs=0))
    with pytest.raises(FloatingPointError, match=r"training loss in epoch 1, step [23] is nan"):
        list(training.epochs())


@pytest.mark.parametrize("every", [1, 2, 5, 200])
def test_how_often_losses_are_looked_at_changes_nothing(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(batch_size=10)
    (usual, _) = training_of(config).epochs()
    monkeypatch.setattr(metrics, "CHECK_EVERY", every)
    (report, _) = training_of(config).epochs()
    assert report.metrics == usual.metrics


@pytest.mark.parametrize("ending", ["whole", "closed early", "failed"])
def test_the_process_gets_its_flags_and_generators_back(ending: str) -> None:
    before = _process()
    config = replace(config_of(Pathway(), mixup=0.2), numerics=Numerics(precision="bf16"))
    if ending == "failed":
        config = config_of(learning_rate=1e30, warmup_epochs=0, mixup=0.2)
    try:
        with closing(training_of(config).epochs()) as reports:
            for _ in reports:
                assert _process() == before
                if ending == "closed early":
                    break
    except FloatingPointError:
        assert ending == "failed"
    assert _process() == before


def _process() -> tuple[object, ...]:
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        getattr(torch.utils.deterministic, "fill_uninitialized_memory"),  # noqa: B009  # untyped
        torch.backends.cudnn.benchmark,
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
    )


def test_what_the_caller_draws_between_epochs_changes_nothing() -> None:
    quiet = training_of(config_of(mixup=0.2, label_smoothing=0.1))
    list(quiet.epochs())
    disturbed = training_of(config_of(mixup=0.2, label_smoothing=0.1))
    for _ in disturbed.epochs():
        torch.rand(3)
        np.random.rand(3)
    assert same_bits(quiet.model.state_dict(), disturbed.model.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_precisions(precision: Precision) -> None:
    config = replace(config_of(Pathway()), numerics=Numerics(precision=precision))
    training = training_of(config)
    last = list(training.epochs())[-1]
    wanted = torch.float64 if precision == "fp64" else torch.float32
    assert {p.dtype for p in training.model.parameters()} == {wanted}
    reference = list(training_of(replace(config, numerics=FP64)).epochs())[-1]
    assert last.metrics["val/loss"] == pytest.approx(reference.metrics["val/loss"], rel=0.05)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_mixing_trains_with_odd_batches_and_smoothed_labels(mixup: float, cutmix: float) -> None:
    config = config_of(mixup=mixup, cutmix=cutmix, label_smoothing=0.1, batch_size=7)
    training = training_of(replace(config, numerics=FP64))
    plain = training_of(replace(config_of(label_smoothing=0.1, batch_size=7), numerics=FP64))
    mixed, unmixed = next(iter(training.epochs())), next(iter(plain.epochs()))
    assert mixed.metrics["train/loss"] != unmixed.metrics["train/loss"]
    assert mixed.metrics["val/loss"] < 3


@pytest.mark.parametrize(
    ("source", "mixing", "names"),
    [("shapes", {"mixup": 0.5}, "mixup: points"), ("shapes", {"cutmix": 1.0}, "cutmix: cuts")],
)
def test_mixing_is_refused_where_it_means_nothing(
    source: str, mixing: dict[str, Any], names: str
) -> None:
    data = DataConfig(source, limit=8)
    with pytest.raises(ValueError, match=names):
        Training(replace(config_of(**mixing), data=data), load(data), {})


@pytest.mark.parametrize("source", ["tones", "shapes", "clips"])
def test_every_modality_trains(source: str) -> None:
    data = DataConfig(source, limit=32, augment=True)
    config = TrainingConfig(MODEL, data, None, config_of().recipe)
    reports = list(Training(config, load(data), {}).epochs())
    assert len(reports) == 2


def test_a_target_starts_from_the_weights_it_is_given() -> None:
    weights = block_weights(seed=3)
    training = Training(config_of(), digits(), {}, target_weights=weights)
    own = training.model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (
            replace(MODEL, depth=3),
            r"blocks.2.attn.qkv.weight, .* are not in the model \(4 in all\); model.depth is 2",
        ),
        (replace(MODEL, depth=1), r"blocks.1.attn.qkv.weight, .* are not in the weights"),
        (
            replace(MODEL, width=32),
            r"attn.qkv.weight has shape \(96, 32\) .* \(48, 16\) in the model",
        ),
    ],
)
def test_target_weights_that_do_not_fit_are_refused(changed: ModelConfig, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Training(config_of(), digits(), {}, target_weights=block_weights(model=changed))


def test_auxiliaries_and_pathway_go_together() -> None:
    with pytest.raises(ValueError, match="needs at least one auxiliary"):
        Training(config_of(Pathway()), digits(), {})
    with pytest.raises(ValueError, match=r"auxiliaries were given: \['audio'\]"):
        Training(config_of(), digits(), {"audio": block_weights()})


def test_clipping_bounds_the_step() -> None:
    clipped = training_of(config_of(clip_grad=1e-12, weight_decay=0.0))
    free = training_of(config_of(weight_decay=0.0))
    start = {name: value.clone() for name, value in clipped.model.state_dict().items()}
    for training in (clipped, free):
        list(training.epochs())
    moved = [
        sum(float((t.model.state_dict()[name] - start[name]).norm()) for name in start)
        for t in (clipped, free)
    ]
    # AdamW divides by the gradient's size, but for its epsilon: there a tiny gradient shows.
    assert moved[0] < 0.1 * moved[1]


@pytest.mark.slow
def test_compiled_code_is_forgotten_between_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "COMPILE_BACKEND", "eager")
    compiled = replace(config_of(epochs=1), numerics=Numerics(compile=True))
    narrow, wide = (replace(compiled, model=replace(MODEL, width=w, depth=1)) for w in (8, 16))
    (report,) = training_of(narrow).epochs()
    # Room for the variants of one trial, but not of two: Dynamo counts them by code object.
    limit = int(report.metrics["compile/graphs"])
    with torch._dynamo.config.patch(recompile_limit=limit):
        list(training_of(wide).epochs())
        list(training_of(narrow).epochs())
        monkeypatch.setattr(numerics, "forget_compiled", lambda: None)
        list(training_of(narrow).epochs())
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            list(training_of(wide).epochs())
    monkeypatch.undo()
    numerics.forget_compiled()


@pytest.mark.slow
def test_inductor_compiles_the_pathway_and_says_so() -> None:
    scale = Scale(init=0.1, envelope=Envelope(kind="cosine"))
    config = replace(config_of(Pathway(scale=scale), batch_size=30), model=replace(MODEL, depth=1))
    compiled = training_of(replace(config, numerics=Numerics(compile=True)))
    reports, reference = list(compiled.epochs()), list(training_of(config).epochs())
    # The envelope moves at every step: had it been compiled in, there would be more graphs.
    assert reports[-1].metrics["compile/graphs"] == reports[0].metrics["compile/graphs"] == 2
    for report, plain in zip(reports, reference, strict=True):
        del report.metrics["compile/graphs"]
        assert report.metrics == pytest.approx(plain.metrics, rel=1e-4)

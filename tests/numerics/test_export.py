"""Exports: what is written is a plain model that computes what the trained one computed."""

import json
import runpy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2pt.data.config import DataConfig
from m2pt.data.load import load as load_data
from m2pt.data.samples import Dataset
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
from m2pt.pathway.reparam import effective_scales, fuse_pathway, scales
from m2pt.training.bounds import figures
from m2pt.training.evaluate import evaluate, logits
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, Recipe, TrainingConfig
from m2pt.training.state import State, from_bytes, to_bytes
from orchestrator.promotion import measure
from orchestrator.promotion.export import (
    Identity,
    PromotionError,
    Trained,
    export_model,
    write,
)
from orchestrator.promotion.gate import Agreement
from orchestrator.promotion.load_model import load_model

pytestmark = pytest.mark.slow

IDENTITY = Identity("0123456789ab", "f" * 64, study="try", metrics={"test/accuracy": 0.5})
MODEL = ModelConfig(width=32, depth=2, heads=2)
PLAIN = TrainingConfig(
    model=MODEL,
    data=DataConfig(source="digits", limit=64),
    recipe=Recipe(epochs=2, warmup_epochs=0, scale_learning_rate=0.05),
)
PATHWAY = Pathway(scale=Scale(init=0.1))
SPLIT = Pathway(
    coverage=Coverage(blocks="last:1", linears=("qkv", "fc2")),
    mapping="reversed",
    scale=Scale(init=-0.2, granularity="block", split_qkv=True, envelope=Envelope("cosine", 0.5)),
    trainable=False,
)


@cache
def digits() -> Dataset:
    return load_data(PLAIN.data)


def auxiliary(seed: int) -> dict[str, Tensor]:
    """Block weights of a model that was never trained."""
    state = build_model(MODEL, digits().info, seed=seed).state_dict()
    return {name: t for name, t in state.items() if name.startswith("blocks") and t.ndim == 2}


@cache
def trained(pathway: Pathway | None, numerics: Numerics = Numerics()) -> tuple[Trained, nn.Module]:  # noqa: B008  # frozen
    """A trial of two epochs, and the model as it stood at its end."""
    config = replace(PLAIN, pathway=pathway, numerics=numerics)
    weights = {} if pathway is None else {"audio": auxiliary(11), "point": auxiliary(12)}
    training = Training(config, digits(), weights)
    *_, last = training.epochs()
    state = from_bytes(to_bytes(training.capture()))
    trial = Trained(config, state, weights, recorded=last.metrics)
    return trial, training.model.eval()


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("pathway", "numerics"),
    [
        (None, Numerics()),
        (PATHWAY, Numerics()),
        (PATHWAY, Numerics("bf16")),
        (PATHWAY, Numerics("fp64")),
        (SPLIT, Numerics()),
    ],
)
def test_the_written_model_is_the_trained_one(
    pathway: Pathway | None, numerics: Numerics, tmp_path: Path
) -> None:
    trial, model = trained(pathway, numerics)
    export = export_model(trial, digits(), IDENTITY, prove_on_test=True)
    loaded = load_model(folder_of(export.files(), tmp_path))
    inputs, _ = digits().test.batch(range(32))
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        expected, found = model(inputs.to(dtype)), loaded(inputs.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert export.proof.failures() == []
    assert export.proof.test is not None
    assert export.proof.test.samples == len(digits().test)
    assert export.proof.test.accuracy_exported == export.proof.test.accuracy_trained
    assert export.proof.probe.disagreements == 0


@pytest.mark.parametrize("pathway", [None, PATHWAY, SPLIT])
def test_keys_shapes_and_parameters_are_the_plain_models(pathway: Pathway | None) -> None:
    export = export_model(trained(pathway)[0], digits(), IDENTITY)
    plain = build_model(MODEL, digits().info, seed=0)
    expected = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in export.tensors.items()} == expected
    assert export.proof.keys_equal
    assert export.proof.parameters_exported == export.proof.parameters_plain
    assert (export.proof.parameters_trained > export.proof.parameters_plain) == bool(pathway)
    assert export.proof.test is None


def test_the_pathway_is_in_the_export() -> None:
    """Otherwise an export that forgot the auxiliary could pass by chance."""
    trial, model = trained(PATHWAY)
    assert min(float(scale.abs().min()) for scale in effective_scales(model).values()) > 0
    export = export_model(trial, digits(), IDENTITY)
    own = trial.state.tensors["model/blocks.0.mlp.fc1.parametrizations.weight.original"]
    assert not torch.equal(export.tensors["blocks.0.mlp.fc1.weight"], own)


def test_what_is_written_says_what_it_is() -> None:
    trial, _ = trained(SPLIT)
    found: dict[str, bytes] = {}
    write(export_model(trial, digits(), IDENTITY), found.__setitem__)
    assert list(found)[-1] == "model.json"
    about = json.loads(found["model.json"])
    assert about["trial"] == IDENTITY.trial
    assert about["fingerprint"] == IDENTITY.fingerprint
    assert about["data"]["class_names"] == list(digits().info.class_names)
    assert about["normalisation"]["std"]
    assert about["auxiliaries"] == ["audio", "point"]
    assert about["pathway"]["mapping"] == "reversed"
    assert about["epochs"] == 2
    assert about["metrics"] == {"test/accuracy": 0.5}
    assert about["proof"]["probe"]["relative_difference"] <= 1e-5


def test_exporting_twice_gives_the_same_bytes() -> None:
    trial, _ = trained(PATHWAY)
    first, second = (export_model(trial, digits(), IDENTITY).files() for _ in range(2))
    assert first == second


def test_the_snippet_runs_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = export_model(trained(None)[0], digits(), IDENTITY)
    folder_of(export.files(), tmp_path)
    runpy.run_path(str(tmp_path / "load_model.py"), run_name="__main__")
    assert f"{export.proof.parameters_plain:,} parameters" in capsys.readouterr().out


def test_damaged_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = folder_of(export_model(trained(None)[0], digits(), IDENTITY).files(), tmp_path)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"sha256 is .* but model\.json says"):
        load_model(folder)


def _wrong_fuse(model: nn.Module) -> nn.Module:
    """Fuses, and then moves one weight by far more than rounding."""
    fuse_pathway(model)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.weight").mul_(1.05)
    return model


def _fuse_in_another_order(model: nn.Module) -> nn.Module:
    fuse_pathway(model)
    linear = model.get_submodule("blocks.0.mlp.fc1")
    weight = linear.weight
    del linear.weight
    linear.register_parameter("weight", weight)  # type: ignore[arg-type]  # it is the parameter
    return model


def _fuse_with_scale_off(model: nn.Module) -> nn.Module:
    """Every λ is off by a hundredth."""
    with torch.no_grad():
        for value in {id(one): one for one in scales(model).values()}.values():
            value.mul_(1.01)
    return fuse_pathway(model)


def _fuse_always_something(model: nn.Module) -> nn.Module:
    """One number of one weight, and by less than any output shows."""
    fuse_pathway(model)
    with torch.no_grad():
        weight = model.get_parameter("blocks.1.attn.proj.weight")
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    return model


def _fuse_with_more(model: nn.Module) -> nn.Module:
    fuse_pathway(model)
    model.register_parameter("left_over", nn.Parameter(torch.zeros(3)))
    return model


@pytest.mark.parametrize(
    ("fuse", "says"),
    [
        (_wrong_fuse, r"0123456789ab.*on probe samples its logits differ by .*at most 1e-05"),
        (_wrong_fuse, r"blocks.0.mlp.fc1.weight differs from W \+ λW' by 5.*in bfloat16"),
        (_wrong_fuse, r"val/accuracy is [\d.]+ on the fused model where the trial recorded"),
        (_fuse_in_another_order, r"in the same order: number \d+ is blocks.0.mlp.fc1.bias"),
        (_fuse_with_scale_off, r"differs from W \+ λW' by .*\(at most 5e-07\)"),
        (_fuse_with_scale_off, r"in float64 its logits differ by .*; in float32 its logits"),
        (_fuse_always_something, r"with every λ at 0, fusing changed 1 .*: blocks.1.attn.proj.w"),
        (_fuse_with_more, "do not load into the plain model.*left_over"),
    ],
)
def test_a_failed_proof_refuses(fuse: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "fuse_pathway", fuse)
    with pytest.raises(PromotionError, match=f"(?s){says}"):
        export_model(trained(PATHWAY)[0], digits(), IDENTITY)


def test_a_figure_that_was_not_reached_is_refused() -> None:
    trial, _ = trained(PATHWAY)
    assert trial.recorded is not None
    boasting = replace(trial, recorded={**trial.recorded, "val/accuracy": 0.99})
    with pytest.raises(PromotionError, match=r"val/accuracy is .* where the trial recorded 0.99"):
        export_model(boasting, digits(), IDENTITY)
    with pytest.raises(PromotionError, match="recorded no figure on validation"):
        export_model(replace(trial, recorded={}), digits(), IDENTITY)


def test_what_is_measured_is_far_from_what_is_refused() -> None:
    """In every type, and of a trial in double precision to the last bit."""
    proof = export_model(trained(PATHWAY)[0], digits(), IDENTITY).proof
    assert [at.dtype for at in proof.dtypes] == ["float64", "float32", "bfloat16"]
    assert all(at.relative_difference < at.tolerance / 3 for at in proof.dtypes)
    assert proof.weights is not None
    assert 0 < proof.weights.relative_difference < proof.weights.tolerance / 3
    assert proof.changed_by_zero == ()
    assert proof.plain_timm is True
    assert proof.figures is not None
    assert [one.name for one in proof.figures] == ["val/loss", "val/accuracy"]
    double = export_model(trained(PATHWAY, Numerics("fp64"))[0], digits(), IDENTITY).proof
    assert double.weights is not None
    assert double.weights.relative_difference == double.dtypes[0].relative_difference == 0


@pytest.mark.parametrize("source", ["digits", "scenes", "shape-parts"])
def test_rounding_moves_figures_between_their_bounds(source: str) -> None:
    """Of every task; and without rounding they are those of an evaluation."""
    samples = load_data(DataConfig(source, limit=32)).validation
    tokenizer = Tokenizer(patch=4, groups=6, group_size=8)
    config = ModelConfig(width=16, depth=1, heads=2, tokenizer=tokenizer)
    model = build_model(config, samples.info, seed=0).eval()
    outputs, by = logits(model, samples, 64, Numerics()), 0.05
    measured = evaluate(model, samples, 64, Numerics())
    told = partial(figures, labels=samples.labels, info=samples.info)
    assert told(outputs) == pytest.approx(measured, rel=1e-6)
    worse, better = told(outputs, shift=-by), told(outputs, shift=by)
    assert worse["loss"] > measured["loss"] > better["loss"]
    drawn = torch.Generator().manual_seed(0)
    for _ in range(5):
        noise = torch.empty_like(outputs).uniform_(-by, by, generator=drawn)
        for name, value in told(outputs + noise).items():
            low, high = sorted((worse[name], better[name]))
            assert low <= value <= high


def test_a_state_of_another_trial_is_refused() -> None:
    trial, _ = trained(PATHWAY)
    other = replace(trial, config=replace(trial.config, seed=5))
    with pytest.raises(PromotionError, match=r"0123456789ab: cannot be rebuilt: .*seed"):
        export_model(other, digits(), IDENTITY)
    with pytest.raises(PromotionError, match="cannot be rebuilt"):
        export_model(replace(trial, state=State({}, {})), digits(), IDENTITY)


def test_infinite_logits_prove_nothing() -> None:
    assert not Agreement(8, float("nan"), 0, 0, 1.0, 1.0).holds
    assert not Agreement(8, 0.0, 2, 1, 1.0, 1.0).holds
    assert Agreement(8, 1e-6, 1, 1, 1.0, 1.0).holds

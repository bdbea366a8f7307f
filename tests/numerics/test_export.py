"""Exports: what is written is a plain model that computes what the trained one computed."""

import json
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2pt.data.config import DataConfig
from m2pt.data.load import load as load_data
from m2pt.data.samples import Dataset
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig
from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
from m2pt.pathway.reparam import effective_scales
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, Recipe, TrainingConfig
from m2pt.training.state import State, from_bytes, to_bytes
from orchestrator.promotion import measure as module
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
    from m2pt.pathway.reparam import fuse_pathway

    fuse_pathway(model)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.weight").mul_(1.05)
    return model


def _fuse_in_another_order(model: nn.Module) -> nn.Module:
    from m2pt.pathway.reparam import fuse_pathway

    fuse_pathway(model)
    linear = model.get_submodule("blocks.0.mlp.fc1")
    weight = linear.weight
    del linear.weight
    linear.register_parameter("weight", weight)  # type: ignore[arg-type]  # it is the parameter
    return model


def _fuse_with_more(model: nn.Module) -> nn.Module:
    from m2pt.pathway.reparam import fuse_pathway

    fuse_pathway(model)
    model.register_parameter("left_over", nn.Parameter(torch.zeros(3)))
    return model


@pytest.mark.parametrize(
    ("fuse", "says"),
    [
        (_wrong_fuse, r"0123456789ab.*on probe samples its logits differ by .*at most 1e-05"),
        (_fuse_in_another_order, "keys are not those of the plain model, in the same order"),
        (_fuse_with_more, "do not load into the plain model.*left_over"),
    ],
)
def test_a_failed_proof_refuses(fuse: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fuse_pathway", fuse)
    with pytest.raises(PromotionError, match=f"(?s){says}"):
        export_model(trained(PATHWAY)[0], digits(), IDENTITY)


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

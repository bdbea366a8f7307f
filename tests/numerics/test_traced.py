"""Models of all modalities as graphs with a free batch, and as ONNX files."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.data.samples import Dataset
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.models.plain import timm_arguments, timm_model
from orchestrator.errors import RequestError
from orchestrator.promotion import onnx_file
from orchestrator.promotion.gate import PromotionError
from orchestrator.promotion.traced import Traced, served_by, trace

pytestmark = pytest.mark.slow

TOKENIZER = Tokenizer(patch=4, groups=3, group_size=4)
SHAPES = {
    "digits": (1, 8, 8),
    "tones": (1, 32, 32),
    "clips": (1, 8, 16, 16),
    "shapes": (128, 3),
    "shape-parts": (128, 4),
}


@cache
def data(source: str) -> Dataset:
    return load(DataConfig(source=source, limit=16))


def model(source: str, **more: object) -> nn.Module:
    config = ModelConfig(width=16, depth=1, heads=2, tokenizer=TOKENIZER, **more)  # type: ignore[arg-type]  # any of its fields
    return build_model(config, data(source).info, seed=0).eval()


def traced(source: str) -> Traced:
    return trace(model(source), data(source).info, data(source).validation)


@pytest.mark.parametrize("source", SHAPES)
def test_a_graph_computes_the_same_on_any_batch(source: str, tmp_path: Path) -> None:
    graph = traced(source)
    assert graph.example.shape == (2, *SHAPES[source])
    graph.save(tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert graph.check(served_by(loaded), "the file") <= 1e-6
    written = (tmp_path / "model.pt2").read_bytes()
    assert b"site-packages" not in written
    assert str(Path(__file__).parents[2]).encode() not in written


def test_another_computation_and_a_batch_that_is_built_in_are_refused() -> None:
    graph = traced("digits")
    with pytest.raises(PromotionError, match=r"it: on a batch of 1 its outputs differ .* by nan"):
        graph.check(lambda inputs: np.full((len(inputs), 10), np.nan, np.float32), "it")
    with pytest.raises(PromotionError, match=r"it gives \(1, 9\) for a batch of 1 .* \(1, 10\)"):
        graph.check(lambda inputs: np.zeros((len(inputs), 9), np.float32), "it")
    other = model("digits")
    with torch.no_grad():
        other.get_parameter("head.bias").add_(0.01)
    with pytest.raises(PromotionError, match=r"differ from the plain model's by .*at most 1e-05"):
        graph.check(served_by(other), "it")

    def of_two(inputs: np.ndarray) -> np.ndarray:
        if len(inputs) != 2:
            raise ValueError("expected 2")
        return served_by(model("digits"))(inputs)

    with pytest.raises(PromotionError, match="it refuses a batch of 1: ValueError: expected 2"):
        graph.check(of_two, "it")


def test_an_onnx_file_computes_the_same() -> None:
    """Of what is hardest to write as ONNX; tests/contract/test_promote.py writes another."""
    import onnx

    files = onnx_file.onnx_files(traced("shape-parts"))
    assert list(files) == ["model.onnx"]
    graph = onnx.load_from_string(files["model.onnx"]).graph
    (taken,), (given,) = graph.input, graph.output
    assert (taken.name, given.name) == ("input", "logits")
    for value in (taken, given):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b"site-packages" not in files["model.onnx"]


def test_without_its_packages_onnx_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RequestError, match=r"needs the package onnxruntime.*orchestrator\[onnx\]"):
        onnx_file.require()


@pytest.mark.parametrize(
    "more",
    [{}, {"class_token": True, "pool": "token"}, {"class_token": True, "positions": "fixed"}],
)
@pytest.mark.parametrize("source", ["digits", "tones"])
def test_timm_alone_builds_the_same_model(source: str, more: dict[str, object]) -> None:
    ours, info = model(source, **more), data(source).info
    config = ModelConfig(width=16, depth=1, heads=2, tokenizer=TOKENIZER, **more)  # type: ignore[arg-type]  # any of its fields
    theirs = timm_model(config, info)
    assert theirs is not None
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    inputs, _ = data(source).validation.batch(range(3))
    with torch.no_grad():
        assert torch.equal(theirs(inputs), ours(inputs))


@pytest.mark.parametrize("source", ["clips", "shapes", "shape-parts"])
def test_a_tokenizer_of_ours_is_not_timms(source: str) -> None:
    config = ModelConfig(width=16, depth=1, heads=2, tokenizer=TOKENIZER)
    assert timm_arguments(config, data(source).info) is None
    assert timm_model(config, data(source).info) is None

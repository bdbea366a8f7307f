"""Block weights: files and layouts that are understood, and what is refused."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from m2pt.data.config import DataInfo
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.weights.blocks import (
    LINEARS,
    WeightsError,
    bias_key,
    block_key,
    block_weights,
    check_fit,
    matrices_of,
)
from m2pt.weights.files import blocks_from_bytes, blocks_to_bytes, load_blocks, save_blocks
from m2pt.weights.layouts import canonical

State = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    config = ModelConfig(width=16, depth=2, heads=2, tokenizer=Tokenizer(patch=4))
    return build_model(config, DataInfo("image", (1, 8, 8), 3, ("a", "b", "c"), ""), seed=0)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def test_block_weights_of_a_model(model: torch.nn.Module) -> None:
    found = block_weights(model)
    places = [(block, linear) for block in (0, 1) for linear in LINEARS]
    assert matrices_of(found) == [block_key(*place) for place in places]
    assert list(found) == [key(*place) for place in places for key in (block_key, bias_key)]
    kept = model.state_dict()["blocks.1.mlp.fc2.weight"].clone()
    found["blocks.1.mlp.fc2.weight"].zero_()
    assert torch.equal(model.state_dict()["blocks.1.mlp.fc2.weight"], kept)
    with pytest.raises(WeightsError, match="Linear: no `blocks`"):
        block_weights(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        prefixed("module."),
        prefixed("model."),
        prefixed("encoder."),
        prefixed("backbone."),
        prefixed("module.encoder."),
        prefixed("_orig_mod.module."),
        lambda state: {"model": state, "optimizer": {"step": 3}, "epoch": 7},
        lambda state: {"state_dict": prefixed("module.")(state), "epoch": 7},
        lambda state: {"module": {"model": prefixed("encoder.")(state)}},
        lambda state: prefixed("encoder.")(state) | prefixed("decoder.")(state),
        lambda state: dict(reversed(state.items())),
    ],
)
def test_layouts(model: torch.nn.Module, change: Callable[[State], State]) -> None:
    assert same(canonical(change(dict(model.state_dict())), "here"), block_weights(model))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy torch"])
def test_files_are_told_by_their_content(model: torch.nn.Module, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        content = {"model": model.state_dict()}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    assert same(load_blocks(path), block_weights(model))


def test_half_precision_becomes_float32_and_double_stays(model: torch.nn.Module) -> None:
    blocks = block_weights(model)
    half = canonical({key: weight.half() for key, weight in blocks.items()}, "here")
    assert {weight.dtype for weight in half.values()} == {torch.float32}
    double = canonical({key: weight.double() for key, weight in blocks.items()}, "here")
    assert {weight.dtype for weight in double.values()} == {torch.float64}


def test_saving_is_exact_and_repeatable(model: torch.nn.Module, tmp_path: Path) -> None:
    blocks = block_weights(model)
    save_blocks(model, tmp_path / "a.safetensors")
    assert same(load_blocks(tmp_path / "a.safetensors"), blocks)
    written = (tmp_path / "a.safetensors").read_bytes()
    assert written == blocks_to_bytes(dict(reversed(blocks.items())))
    assert same(blocks_from_bytes(written), blocks)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def refused(change: Callable[[State], object]) -> Callable[[State], object]:
    return change


def replaced(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {key: change(state[key])}


def dropped(*keys: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key not in keys}


def with_nan(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight[0, 0] = float("nan")
    return weight


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {"layers.0.w": state["head.bias"]}, "begins with layers.0.w$"),
        (lambda state: prefixed("decoder.")(state), "known layout .*begins with decoder.pos_embed"),
        (lambda state: {}, "nothing: it is empty"),
        (lambda state: [state], "holds one list, no dictionary of tensors"),
        (
            lambda state: prefixed("encoder.")(state) | state,
            "blocks under 2 prefixes .*'', 'encoder.'",
        ),
        (dropped("blocks.1.mlp.fc1.weight"), "7 block matrices, and blocks.1.attn.qkv.weight"),
        (
            dropped(*(block_key(0, linear) for linear in LINEARS)),
            "4 block matrices, and blocks.0.attn.qkv.weight is not among them",
        ),
        (
            replaced("blocks.1.attn.qkv.weight", lambda w: w[:32]),
            r"blocks.1.attn.qkv.weight has shape \(32, 16\), .* must be \(48, 16\)",
        ),
        (replaced("blocks.0.attn.proj.weight", lambda w: w.sum()), "has shape"),
        (
            replaced("blocks.1.mlp.fc1.bias", lambda b: b[:3]),
            r"blocks.1.mlp.fc1.bias has shape \(3,\), .* must be \(64,\)",
        ),
        (
            replaced("blocks.1.mlp.fc2.weight", with_nan),
            "blocks.1.mlp.fc2.weight holds 1 of 1024 values that are NaN",
        ),
        (
            replaced("blocks.0.mlp.fc1.weight", lambda w: w.to(torch.int8)),
            r"blocks.0.mlp.fc1.weight is torch.int8; .*not quantised",
        ),
    ],
)
def test_unsound_weights(
    model: torch.nn.Module, change: Callable[[State], object], told: str
) -> None:
    with pytest.raises(WeightsError, match=f"^here: .*{told}"):
        canonical(change(dict(model.state_dict())), "here")


def test_a_dictionary_that_holds_itself() -> None:
    state: State = {}
    state["model"] = state
    with pytest.raises(WeightsError, match="here: "):
        canonical(state, "here")


def test_missing_and_damaged_files(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone: does not exist; name a \.safetensors"):
        load_blocks(tmp_path / "gone")
    with pytest.raises(WeightsError, match="is a folder"):
        load_blocks(tmp_path)
    (tmp_path / "text").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=r"text: is a web page \(16 bytes\)"):
        load_blocks(tmp_path / "text")
    (tmp_path / "text").write_text("some words")
    with pytest.raises(WeightsError, match="text: neither whole safetensors nor a torch file"):
        load_blocks(tmp_path / "text")
    (tmp_path / "empty").touch()
    with pytest.raises(WeightsError, match="empty: is empty"):
        load_blocks(tmp_path / "empty")


def test_a_digest_is_checked_before_the_file_is_read(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_blocks(model, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(load_blocks(path, sha256=digest), block_weights(model))
    with pytest.raises(WeightsError, match=f"its sha256 is {digest}, not {'0' * 64}; fetch it"):
        load_blocks(path, sha256="0" * 64)


def test_a_model_of_another_shape_does_not_fit(model: torch.nn.Module) -> None:
    blocks = block_weights(model)
    check_fit(blocks, ModelConfig(width=16, depth=2, heads=4), "here")
    told = "here: 2 blocks of width 16 with 64 hidden .* model has 3 blocks of width 32 with 64 "
    with pytest.raises(WeightsError, match=told):
        check_fit(blocks, ModelConfig(width=32, depth=3, mlp_ratio=2.0), "here")


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy torch"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.98])
def test_truncated_files(model: torch.nn.Module, tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / "cut"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "torch")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(WeightsError, match=r"cut: .*fetch it again"):
        load_blocks(path)


class Trap:
    """Leaves a trace where it is rebuilt."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["torch", "legacy torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "trap", {"model": Trap(tmp_path / "trace")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(WeightsError, match="trap: ") as caught:
        load_blocks(path)
    assert "weights_only=False" not in str(caught.value)
    assert not (tmp_path / "trace").exists()

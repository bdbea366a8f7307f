"""The plain model as an ONNX file, compared with PyTorch's outputs before it is handed out."""

import importlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from orchestrator.errors import RequestError
from orchestrator.promotion.gate import PromotionError
from orchestrator.promotion.traced import Traced, in_short

FILE = "model.onnx"
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require() -> None:
    """Raises `RequestError` where a package of the extra `onnx` is missing."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RequestError(
                f"--onnx: needs the package {name}, which is not there ({error}); install the "
                "extra: pip install 'm2pt-orchestrator[onnx]', or leave --onnx out"
            ) from None


def onnx_files(traced: Traced) -> dict[str, bytes]:
    """model.onnx, and beside it its weights where they take more than ONNX's 2 GB.

    Input `input` (batch, ...), output `logits` (batch, ...).

    Raises:
        RequestError: a package is missing.
        PromotionError: it cannot be translated, or onnxruntime computes something else.
    """
    require()
    from onnxruntime import InferenceSession

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        _translate(traced, file)
        session = InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(inputs: np.ndarray) -> np.ndarray:
            outputs: np.ndarray = session.run(None, {"input": inputs})[0]
            return outputs

        traced.check(run, f"{FILE} in onnxruntime")
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _translate(traced: Traced, file: Path) -> None:
    # Of what our models need, this alone ONNX's translations do not know.
    table = {torch.ops.aten.cdist.default: _distances}
    try:
        module = traced.program.run_decompositions(table).module()
        module.training = False  # it was traced so; `eval` itself a graph refuses
        program = torch.onnx.export(
            module,
            (torch.from_numpy(traced.example),),
            dynamo=True,
            verbose=False,
            optimize=False,  # onnxscript takes +1e-8 for +0; onnxruntime optimises by itself
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
        assert program is not None
        _forget_places(program)
        program.save(str(file))
    except Exception as error:  # of any of three packages
        raise PromotionError(
            f"--onnx: the model cannot be written as ONNX: {in_short(error)}; leave --onnx out"
        ) from error


def _forget_places(program: torch.onnx.ONNXProgram) -> None:
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()


def _distances(
    one_BPM: Tensor, other_BRM: Tensor, p: float = 2.0, compute_mode: int | None = None
) -> Tensor:
    """Euclidean distances (B, P, R), as `torch.cdist` is told to find them."""
    assert p == 2.0
    del compute_mode  # how, not what
    return (one_BPM[:, :, None] - other_BRM[:, None]).square().sum(dim=3).sqrt()

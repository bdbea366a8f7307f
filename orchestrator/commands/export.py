"""`export STUDY`: fuse a trial, prove the merge, and write the plain model to a folder."""

import argparse
import json
from pathlib import Path

from orchestrator.commands.chosen import add_trial, chosen
from orchestrator.commands.report import write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """STUDY, --storage, --trial, --to, --onnx."""
    add_trial(parser)
    parser.add_argument("--to", metavar="FOLDER", required=True, help="where the model goes")
    parser.add_argument(
        "--onnx", action="store_true",
        help="also model.onnx, compared with PyTorch by onnxruntime (the extra `onnx`)",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Write the model and say what was proved."""
    of = chosen(parsed)
    from orchestrator.promotion import onnx_file  # torch, only once it is needed

    if parsed.onnx:
        onnx_file.require()
    export = of.export()
    if parsed.onnx:
        export = export.with_files(onnx_file.onnx_files(export.traced()))
    write(Path(parsed.to), export.files())
    about = {"trial": of.trial.trial, "label": of.trial.label, "to": parsed.to}
    if parsed.json:
        print(json.dumps(about | {"files": sorted(export.files()), "proof": export.about["proof"]}))
        return 0
    probe = export.proof.probe
    print(f"trial {of.trial.trial} ({of.trial.label}) is fused and lies in {parsed.to}")
    print(
        f"proved: {export.proof.parameters_exported:,} parameters, as the plain model "
        f"({export.proof.parameters_trained:,} were trained); strict load; logits of "
        f"{probe.samples} samples differ by {probe.relative_difference:.1e} of their size"
    )
    if parsed.onnx:
        print(f"{onnx_file.FILE} computes the same in onnxruntime")
    print(f"load it: python {Path(parsed.to) / 'load_model.py'}")
    return 0

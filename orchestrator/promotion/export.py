"""From a trained pathway to a plain model: fuse, prove, write.

The paper's claim is that the merged model costs nothing extra and computes the same. Here that is
measured for every export, on the very bytes that are written, and an export that fails is refused.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from m2pt.data.samples import Dataset
from m2pt.models.plain import timm_arguments, timm_name
from m2pt.rivals.config import why_no_export
from orchestrator.promotion.card import model_card
from orchestrator.promotion.gate import PromotionError, Proof, check
from orchestrator.promotion.measure import Merge, Trained, measure
from orchestrator.promotion.traced import Traced, trace

__all__ = ["Export", "Identity", "PromotionError", "Trained", "export_model", "write"]

FORMAT = 1

Json = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """What the export is of: it ends up in model.json and changes nothing else."""

    trial: str
    fingerprint: str
    study: str = ""
    metrics: Mapping[str, float] | None = None
    """The trial's figures, such as ``test/accuracy``."""


@dataclass(frozen=True)
class Export:
    """A plain model as files, with the proof that it is the trained one."""

    weights: bytes
    """model.safetensors."""
    about: dict[str, Any]
    """model.json: what the weights are of, how to build the model, the proof."""
    proof: Proof
    plain: nn.Module
    """The model that loaded the weights, in eval mode, on the CPU."""
    dataset: Dataset
    """What it was proved on."""
    further: dict[str, bytes] = field(default_factory=dict)
    """Files beside those that every export has."""

    @property
    def sha256(self) -> str:
        """Of the weights' file."""
        return str(self.about["sha256"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name (in the file's order; a strict load does not mind)."""
        return load(self.weights)

    def traced(self) -> Traced:
        """The model as a graph with a free batch. Raises `PromotionError`."""
        return trace(self.plain, self.dataset.info, self.dataset.validation)

    def with_evidence(self, evidence: Mapping[str, Any], lineage: Sequence[Json]) -> "Export":
        """This export, told what its study found and where its weights come from."""
        return replace(self, about=self.about | {"evidence": evidence, "lineage": lineage})

    def with_files(self, files: Mapping[str, bytes]) -> "Export":
        """This export, with files beside those that every export has."""
        return replace(self, further={**self.further, **files})

    def files(self) -> dict[str, bytes]:
        """What to put into the export's folder."""
        snippet = resources.files("orchestrator.promotion").joinpath("load_model.py")
        return {
            "model.safetensors": self.weights,
            "model.json": json.dumps(self.about, indent=2, ensure_ascii=False).encode(),
            "load_model.py": snippet.read_bytes(),
            "README.md": model_card(self.about).encode(),
            **self.further,
        }


def export_model(
    trained: Trained,
    dataset: Dataset,
    identity: Identity,
    *,
    prove_on_test: bool = False,
    device: str = "cpu",
) -> Export:
    """Fuse the trained model, let it through the gate, and return the files.

    Args:
        trained: the trial as it ended; a baseline is exported the same way.
        dataset: the data that ``trained.config.data`` names.
        identity: what the export is of.
        prove_on_test: compare on the whole test split too, not only on validation samples. That
            reads test labels: do it for a trial that was tested anyway.
        device: where both models compute.

    Raises:
        PromotionError: the state is not of this trial, or a rule of the gate is broken.
    """
    rival = trained.config.rival
    if rival is not None and rival.composed:
        raise PromotionError(f"trial {identity.trial}: {why_no_export(rival.kind)}")
    merge = measure(trained, dataset, identity.trial, on_test=prove_on_test, device=device)
    check(identity.trial, merge.proof)
    about = _about(trained, dataset, identity, merge)
    return Export(merge.weights, about, merge.proof, merge.plain, dataset)


def write(export: Export, put: Callable[[str, bytes], object]) -> None:
    """Hand every file to ``put(name, content)``; model.json last, so that it stands for all."""
    files = export.files()
    for name in sorted(files, key=lambda name: name == "model.json"):
        put(name, files[name])


def _about(trained: Trained, dataset: Dataset, identity: Identity, merge: Merge) -> dict[str, Any]:
    """model.json, as plain JSON."""
    config = trained.config
    arguments = timm_arguments(config.model, dataset.info)
    about = {
        "format": FORMAT,
        "study": identity.study,
        "trial": identity.trial,
        "fingerprint": identity.fingerprint,
        "sha256": hashlib.sha256(merge.weights).hexdigest(),
        "dtype": "float64" if config.numerics.precision == "fp64" else "float32",
        "model": asdict(config.model),
        "timm": arguments and {"name": timm_name(config.model), "arguments": arguments},
        "data": asdict(dataset.info),
        "normalisation": asdict(dataset.normalisation),
        "source": asdict(config.data),
        "seed": config.seed,
        "epochs": trained.state.meta.get("epoch"),
        "pathway": None if config.pathway is None else asdict(config.pathway),
        "rival": None if config.rival is None else asdict(config.rival),
        "auxiliaries": sorted(trained.auxiliaries),
        "scales": dict(merge.scales),
        "metrics": dict(identity.metrics or {}),
        "proof": asdict(merge.proof),
        "versions": {"torch": torch.__version__},
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain

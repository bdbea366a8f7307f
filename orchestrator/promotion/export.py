"""From a trained pathway to a plain model: fuse, prove, write.

The paper's claim is that the merged model costs nothing extra and computes the same. Here that is
measured for every export, on the very bytes that are written, and an export that fails is refused.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from m2pt.data.config import DataInfo
from m2pt.data.samples import Batch, Dataset, Readable
from m2pt.models.build import build_model
from m2pt.pathway.reparam import fuse_pathway, has_pathway
from m2pt.training.evaluate import logits
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, TrainingConfig
from m2pt.training.state import State
from m2pt.training.target import TargetWeights
from m2pt.training.tasks import LEARNING
from m2pt.training.world import World
from orchestrator.errors import OrchestratorError

FORMAT = 1
TOLERANCE = 1e-5
"""Largest difference of any logit, as a fraction of the largest logit, that is still the same."""

PROBE_SAMPLES = 256
_BATCH = 128


class PromotionError(OrchestratorError):
    """A model cannot be exported: a proof failed, or its state does not belong to it."""

    exit_code = 3


@dataclass(frozen=True)
class Identity:
    """What the export is of: it ends up in model.json and changes nothing else."""

    trial: str
    fingerprint: str
    study: str = ""
    metrics: Mapping[str, float] | None = None
    """The trial's figures, such as ``test/accuracy``."""


@dataclass(frozen=True)
class Agreement:
    """How the exported model compares with the trained one on the same samples.

    Attributes:
        samples: how many.
        relative_difference: largest |difference of a logit| over the largest |logit|.
        disagreements: samples whose predicted class differs, or set of classes, or a point's part.
        ties: those among them whose logits are closer to deciding otherwise than the tolerance, so
            that either answer is right.
        accuracy_trained, accuracy_exported: fraction of right predictions, 0 to 1: of samples, of
            samples and classes, or of points.
    """

    samples: int
    relative_difference: float
    disagreements: int
    ties: int
    accuracy_trained: float
    accuracy_exported: float

    @property
    def holds(self) -> bool:
        """Same outputs within the tolerance, same predictions but for ties."""
        return self.relative_difference <= TOLERANCE and self.disagreements == self.ties


@dataclass(frozen=True)
class Proof:
    """What was measured before an export was let through.

    Parameters are counted over trained model (with its auxiliaries), export and a plain model.
    """

    keys: int
    keys_equal: bool
    parameters_trained: int
    parameters_exported: int
    parameters_plain: int
    probe: Agreement
    test: Agreement | None
    tolerance: float = TOLERANCE

    def failures(self) -> list[str]:
        """The rules that the export breaks, in words; empty when it may go out."""
        broken = []
        if not self.keys_equal:
            broken.append("its keys are not those of the plain model, in the same order")
        if self.parameters_exported != self.parameters_plain:
            broken.append(
                f"it has {self.parameters_exported:,} parameters where the plain model has "
                f"{self.parameters_plain:,}"
            )
        for name, found in (("probe", self.probe), ("test", self.test)):
            if found is not None and not found.holds:
                broken.append(
                    f"on {name} samples its logits differ by {found.relative_difference:.2e} "
                    f"(at most {self.tolerance:.0e}) and {found.disagreements} of "
                    f"{found.samples} predictions differ, {found.ties} of them ties"
                )
        return broken


@dataclass(frozen=True)
class Export:
    """A plain model as files, with the proof that it is the trained one."""

    weights: bytes
    """model.safetensors."""
    about: dict[str, Any]
    """model.json: what the weights are of, how to build the model, the proof."""
    proof: Proof

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name (in the file's order; a strict load does not mind)."""
        return load(self.weights)

    def files(self) -> dict[str, bytes]:
        """What to put into the export's folder."""
        snippet = resources.files("orchestrator.promotion").joinpath("load_model.py")
        return {
            "model.safetensors": self.weights,
            "model.json": json.dumps(self.about, indent=2, ensure_ascii=False).encode(),
            "load_model.py": snippet.read_bytes(),
        }


@dataclass(frozen=True)
class Trained:
    """A trial's end: its configuration, its state, and the weights that the state leaves out."""

    config: TrainingConfig
    state: State
    auxiliaries: Mapping[str, Mapping[str, Tensor]]
    target_weights: TargetWeights | None = None


def export_model(
    trained: Trained,
    dataset: Dataset,
    identity: Identity,
    *,
    prove_on_test: bool = False,
    device: str = "cpu",
) -> Export:
    """Fuse the trained model, prove that nothing changed, and return the files.

    Args:
        trained: the trial as it ended; a baseline is exported the same way.
        dataset: the data that ``trained.config.data`` names.
        identity: what the export is of.
        prove_on_test: compare on the whole test split too, not only on validation samples. That
            reads test labels: do it for a trial that was tested anyway.
        device: where both models compute.

    Raises:
        PromotionError: the state is not of this trial, or a proof fails.
    """
    model = _restored(trained, dataset, identity, device)
    splits = {"probe": _First(dataset.validation, PROBE_SAMPLES)}
    if prove_on_test:
        splits["test"] = _First(dataset.test, len(dataset.test))
    outputs = partial(_outputs, numerics=_numerics(trained.config), device=device)
    before = {name: outputs(model, samples) for name, samples in splits.items()}
    counted = _count(model)
    if has_pathway(model):
        fuse_pathway(model)
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    weights = save(state)
    plain = _plain(trained.config, dataset).to(device)
    _load_strictly(plain, load(weights), identity)
    after = {name: outputs(plain, samples) for name, samples in splits.items()}
    agreements = {name: _agreement(before[name], after[name], splits[name]) for name in splits}
    proof = Proof(
        keys=len(state),
        keys_equal=list(state) == list(plain.state_dict()),
        parameters_trained=counted,
        parameters_exported=sum(state[name].numel() for name, _ in model.named_parameters()),
        parameters_plain=_count(plain),
        probe=agreements["probe"],
        test=agreements.get("test"),
    )
    if broken := proof.failures():
        raise PromotionError(
            f"trial {identity.trial}: the fused model is not the trained one: "
            f"{'; '.join(broken)}. Nothing was exported; please report this with the trial's file"
        )
    return Export(weights, _about(trained, dataset, identity, (weights, proof)), proof)


def write(export: Export, put: Callable[[str, bytes], object]) -> None:
    """Hand every file to ``put(name, content)``; model.json last, so that it stands for all."""
    files = export.files()
    for name in sorted(files, key=lambda name: name == "model.json"):
        put(name, files[name])


class _First:
    """The first samples of a split, as samples."""

    def __init__(self, samples: Readable, count: int) -> None:
        self._samples = samples
        self._count = min(count, len(samples))

    @property
    def info(self) -> DataInfo:
        return self._samples.info

    @property
    def labels(self) -> Tensor:
        return self._samples.labels[: self._count]

    def __len__(self) -> int:
        return self._count

    def stream(self, pieces: Sequence[Tensor], **view: Any) -> Generator[Batch, None, None]:
        return self._samples.stream(pieces, **view)


def _restored(trained: Trained, dataset: Dataset, identity: Identity, device: str) -> nn.Module:
    """The trained model, λ and envelope where the state left them."""
    try:
        training = Training(
            trained.config,
            dataset,
            trained.auxiliaries,
            target_weights=trained.target_weights,
            world=World(device=device),
        )
        training.restore(trained.state)
        training.settle()
    except ValueError as error:
        raise PromotionError(f"trial {identity.trial}: cannot be rebuilt: {error}") from error
    return training.model.eval()


def _plain(config: TrainingConfig, dataset: Dataset) -> nn.Module:
    """A freshly built target that never saw a pathway; its own weights differ (another seed)."""
    built = build_model(config.model, dataset.info, seed=config.seed + 1)
    return built.to(torch.float64 if config.numerics.precision == "fp64" else torch.float32)


def _numerics(config: TrainingConfig) -> Numerics:
    """Proofs are made in the weights' own type: under autocast rounding would hide errors."""
    return Numerics(precision="fp64" if config.numerics.precision == "fp64" else "fp32")


def _outputs(model: nn.Module, samples: _First, *, numerics: Numerics, device: str) -> Tensor:
    return logits(model, samples, _BATCH, numerics, device=device)


def _load_strictly(plain: nn.Module, tensors: dict[str, Tensor], identity: Identity) -> None:
    try:
        plain.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise PromotionError(
            f"trial {identity.trial}: the fused weights do not load into the plain model: {error}"
        ) from error


def _agreement(trained: Tensor, exported: Tensor, samples: _First) -> Agreement:
    """Compare logits (N, ...) of both models on the same N samples, a batch at a time: those of
    clouds' parts fill gigabytes."""
    decide, info = LEARNING[samples.info.task].decide, samples.info
    labels_N = samples.labels
    cuts = [slice(start, start + _BATCH) for start in range(0, len(trained), _BATCH)]
    pieces = [(trained[cut], exported[cut], labels_N[cut]) for cut in cuts]
    # A maximum of tensors and not of numbers: those would lose a NaN.
    size = float(torch.stack([one.abs().max() for one, _, _ in pieces]).max())
    difference = float(torch.stack([(one - other).abs().max() for one, other, _ in pieces]).max())
    differing = ties = right = ours_right = told = 0
    for one, other, labels in pieces:
        said, ours = decide(one, labels, info), decide(other, labels, info)
        differ = said.answers != ours.answers
        clear = differ & (said.margins > 2 * TOLERANCE * size)
        differing += int(differ.any(dim=1).sum())
        ties += int((differ.any(dim=1) & ~clear.any(dim=1)).sum())
        right += int((said.answers == said.truth).sum())
        ours_right += int((ours.answers == ours.truth).sum())
        told += said.truth.numel()
    return Agreement(
        samples=len(trained),
        relative_difference=difference / size if size else difference,
        disagreements=differing,
        ties=ties,
        accuracy_trained=right / told,
        accuracy_exported=ours_right / told,
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _about(
    trained: Trained, dataset: Dataset, identity: Identity, made: tuple[bytes, Proof]
) -> dict[str, Any]:
    """model.json, as plain JSON."""
    weights, proof = made
    config = trained.config
    about = {
        "format": FORMAT,
        "study": identity.study,
        "trial": identity.trial,
        "fingerprint": identity.fingerprint,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "dtype": "float64" if config.numerics.precision == "fp64" else "float32",
        "model": asdict(config.model),
        "data": asdict(dataset.info),
        "normalisation": asdict(dataset.normalisation),
        "source": asdict(config.data),
        "seed": config.seed,
        "epochs": trained.state.meta.get("epoch"),
        "pathway": None if config.pathway is None else asdict(config.pathway),
        "auxiliaries": sorted(trained.auxiliaries),
        "metrics": dict(identity.metrics or {}),
        "proof": asdict(proof),
        "versions": {"torch": torch.__version__},
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain

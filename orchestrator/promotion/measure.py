"""Measuring a merge: the trained model beside the plain one that is to leave the house.

Everything is measured on the very bytes that are written, loaded strictly into a freshly built
model that never saw a pathway. What the figures must be, `gate` says.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from m2pt.data.samples import Dataset, First, Readable
from m2pt.models.build import build_model
from m2pt.models.plain import timm_model
from m2pt.pathway.reparam import fuse_pathway, has_pathway, scales
from m2pt.pathway.weight import Joined, joined
from m2pt.rivals.join import added_names, merge_rival
from m2pt.training.bounds import figures
from m2pt.training.evaluate import logits
from m2pt.training.loop import Training
from m2pt.training.recipe import Numerics, TrainingConfig
from m2pt.training.state import State
from m2pt.training.target import TargetWeights
from m2pt.training.tasks import LEARNING
from m2pt.training.world import World
from orchestrator.promotion import gate
from orchestrator.promotion.gate import (
    Agreement,
    AtDtype,
    Figure,
    PromotionError,
    Proof,
    Weights,
    first_apart,
)

PROBE_SAMPLES = 256
DTYPE_SAMPLES = 32
"""Of the probe: one real batch, computed twice in each type."""
_BATCH = 128
_DTYPES = {"float64": Numerics("fp64"), "float32": Numerics("fp32"), "bfloat16": Numerics("bf16")}


@dataclass(frozen=True)
class Trained:
    """A trial's end: its configuration, its state, and the weights that the state leaves out."""

    config: TrainingConfig
    state: State
    auxiliaries: Mapping[str, Mapping[str, Tensor]]
    target_weights: TargetWeights | None = None
    recorded: Mapping[str, float] | None = None
    """What the trial recorded after its last epoch, such as ``val/accuracy``; None: not known."""


@dataclass(frozen=True)
class Merge:
    """A trained model and what became of it."""

    weights: bytes
    """model.safetensors."""
    plain: nn.Module
    """The target that loaded them, in eval mode, on the CPU."""
    proof: Proof
    scales: Mapping[str, float]
    """λ as it was fused, the mean of each linear, by ``auxiliary/path``."""


def measure(
    trained: Trained, dataset: Dataset, trial: str, *, on_test: bool = False, device: str = "cpu"
) -> Merge:
    """Fuse a copy of the trained model and measure all that the gate asks for.

    Args:
        trained: the trial as it ended; a baseline is measured the same way.
        dataset: the data that ``trained.config.data`` names.
        trial: its id, for messages.
        on_test: compare on the whole test split too. That reads test labels.
        device: where both models compute.

    Raises:
        PromotionError: the state is not of this trial, or the fused weights load into no target.
    """
    model = _restored(trained, dataset, trial, device)
    fused = _merged(model)
    state = {name: t.detach().cpu().contiguous() for name, t in fused.state_dict().items()}
    counted = sum(state[name].numel() for name, _ in fused.named_parameters())
    del fused
    weights = save(state)
    plain = _plain(trained.config, dataset).to(device)
    _load_strictly(plain, load(weights), trial)
    compare = _Comparison(model, plain, _numerics(trained.config), device)
    keys = list(plain.state_dict())
    proof = Proof(
        keys=len(state),
        keys_equal=list(state) == keys,
        keys_apart=first_apart(list(state), keys),
        parameters_trained=_count(model),
        parameters_exported=counted,
        parameters_plain=_count(plain),
        probe=compare.on(First(dataset.validation, PROBE_SAMPLES)),
        test=compare.on(First(dataset.test, len(dataset.test))) if on_test else None,
        weights=_furthest(model, state),
        changed_by_zero=_changed_by_zero(model),
        dtypes=tuple(compare.in_each(First(dataset.validation, DTYPE_SAMPLES))),
        figures=_figures(trained, plain, dataset, device),
        plain_timm=_as_timm(trained.config, dataset, plain, load(weights)),
    )
    return Merge(weights, plain.cpu().eval(), proof, _scales(model))


@dataclass(frozen=True)
class _Comparison:
    """Trained and plain model side by side."""

    trained: nn.Module
    plain: nn.Module
    numerics: Numerics
    device: str

    def on(self, samples: First) -> Agreement:
        """In the weights' own type: under autocast rounding would hide errors."""
        outputs = partial(_outputs, numerics=self.numerics, device=self.device)
        return _agreement(outputs(self.trained, samples), outputs(self.plain, samples), samples)

    def in_each(self, samples: First) -> Iterator[AtDtype]:
        """In each type that the gate knows, with both models' weights brought to it."""
        apart = bool(added_names(self.trained))
        for name, tolerance in (gate.APART_TOLERANCES if apart else gate.DTYPE_TOLERANCES).items():
            numerics = _DTYPES[name]
            own = torch.float64 if name == "float64" else torch.float32
            found = [
                _outputs(copy.deepcopy(one).to(own), samples, numerics=numerics, device=self.device)
                for one in (self.trained, self.plain)
            ]
            yield AtDtype(name, len(samples), _relative(found[0], found[1]), tolerance)


def _restored(trained: Trained, dataset: Dataset, trial: str, device: str) -> nn.Module:
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
        raise PromotionError(f"trial {trial}: cannot be rebuilt: {error}") from error
    return training.model.eval()


def _merged(model: nn.Module) -> nn.Module:
    """A copy of the trained model, in the form in which it is used."""
    return merge_rival(fuse_pathway(copy.deepcopy(model)))


def _plain(config: TrainingConfig, dataset: Dataset) -> nn.Module:
    """A freshly built target that never saw a pathway; its own weights differ (another seed)."""
    built = build_model(config.model, dataset.info, seed=config.seed + 1)
    return built.to(torch.float64 if config.numerics.precision == "fp64" else torch.float32).eval()


def _numerics(config: TrainingConfig) -> Numerics:
    return Numerics(precision="fp64" if config.numerics.precision == "fp64" else "fp32")


def _outputs(model: nn.Module, samples: Readable, *, numerics: Numerics, device: str) -> Tensor:
    return logits(model, samples, _BATCH, numerics, device=device)


def _load_strictly(plain: nn.Module, tensors: dict[str, Tensor], trial: str) -> None:
    try:
        plain.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise PromotionError(
            f"trial {trial}: the fused weights do not load into the plain model: {error}"
        ) from error


@torch.no_grad()
def _furthest(model: nn.Module, state: Mapping[str, Tensor]) -> Weights | None:
    """The tensor of a fused `state` that is furthest from the pathway's own forward in float64.

    Tensors that have no pathway are the trained ones to the bit, or infinitely far.
    """
    if not has_pathway(model):
        return None
    own = {_name(one): one for one in joined(model)}
    trained = {name: t for name, t in model.state_dict().items() if "parametrizations" not in name}
    apart = {name: _apart(one, state[name]) for name, one in own.items()}
    for name, tensor in trained.items():
        apart[name] = 0.0 if torch.equal(tensor.cpu(), state[name]) else float("inf")
    name = max(apart, key=lambda key: (apart[key] != apart[key], apart[key]))  # a NaN above all
    kind = str(state[name].dtype).removeprefix("torch.")
    return Weights(name, apart[name], gate.WEIGHT_TOLERANCES[kind])


def _apart(one: Joined, fused: Tensor) -> float:
    """Largest difference of a fused tensor from W + Σ λW' in float64, over its largest number."""
    exact = copy.deepcopy(one.part).double()(one.own.double()).cpu()
    size = torch.stack([one.own.detach().double().abs().max().cpu(), exact.abs().max()]).max()
    difference = (fused.double() - exact).abs().max()
    return float(difference / size) if float(size) else float(difference)


@torch.no_grad()
def _changed_by_zero(model: nn.Module) -> tuple[str, ...]:
    """The tensors that are not the target's own, bit for bit, once λ = 0 was fused into them."""
    target = {_name(one): one.own.detach().cpu() for one in joined(model)}
    if not target:
        return ()
    nothing = copy.deepcopy(model)
    for value in scales(nothing).values():
        value.zero_()
    state = fuse_pathway(nothing).state_dict()
    expected = target | {n: t for n, t in model.state_dict().items() if n in state}
    return tuple(n for n, tensor in state.items() if not _same_bits(tensor, expected.get(n)))


def _same_bits(one: Tensor, other: Tensor | None) -> bool:
    """Also the sign of a zero."""
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    pair = [t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (one, other)]
    return torch.equal(*pair)


def _figures(
    trained: Trained, plain: nn.Module, dataset: Dataset, device: str
) -> tuple[Figure, ...] | None:
    """What the trial recorded on validation, beside the fused model's, computed as it was."""
    if trained.recorded is None:
        return None
    recorded = {n: v for n, v in trained.recorded.items() if n.startswith("val/")}
    if not recorded:
        return ()
    numerics = Numerics(trained.config.numerics.precision)
    found = _outputs(plain, dataset.validation, numerics=numerics, device=device)
    size = float(found.abs().max())
    shift = gate.FIGURE_TOLERANCES[numerics.precision] * size
    figured = partial(figures, found, dataset.validation.labels, dataset.info)
    here, worse, better = (
        {f"val/{name}": value for name, value in figured(by).items()} for by in (0.0, -shift, shift)
    )
    return tuple(
        Figure(name, value, here[name], *sorted((worse[name], better[name])))
        for name, value in recorded.items()
        if name in here
    )


@torch.no_grad()
def _as_timm(
    config: TrainingConfig, dataset: Dataset, plain: nn.Module, tensors: dict[str, Tensor]
) -> bool | None:
    """Whether timm alone builds the model that takes the weights strictly and computes the same."""
    model = timm_model(config.model, dataset.info)
    if model is None:
        return None
    parameter = next(plain.parameters())
    model.to(parameter.device, parameter.dtype)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError:
        return False
    inputs, _ = dataset.validation.batch(range(min(2, len(dataset.validation))))
    inputs = inputs.to(parameter.device, parameter.dtype)
    return torch.equal(model(inputs), plain.eval()(inputs))


def _agreement(trained: Tensor, exported: Tensor, samples: Readable) -> Agreement:
    """Compare logits (N, ...) of both models on the same N samples, a batch at a time: those of
    clouds' parts fill gigabytes."""
    decide, info = LEARNING[samples.info.task].decide, samples.info
    labels_N = samples.labels
    cuts = [slice(start, start + _BATCH) for start in range(0, len(trained), _BATCH)]
    pieces = [(trained[cut], exported[cut], labels_N[cut]) for cut in cuts]
    size = float(torch.stack([one.abs().max() for one, _, _ in pieces]).max())
    differing = ties = right = ours_right = told = 0
    for one, other, labels in pieces:
        said, ours = decide(one, labels, info), decide(other, labels, info)
        differ = said.answers != ours.answers
        clear = differ & (said.margins > 2 * gate.TOLERANCE * size)
        differing += int(differ.any(dim=1).sum())
        ties += int((differ.any(dim=1) & ~clear.any(dim=1)).sum())
        right += int((said.answers == said.truth).sum())
        ours_right += int((ours.answers == ours.truth).sum())
        told += said.truth.numel()
    return Agreement(
        samples=len(trained),
        relative_difference=_relative(trained, exported),
        disagreements=differing,
        ties=ties,
        accuracy_trained=right / told,
        accuracy_exported=ours_right / told,
    )


def _relative(one: Tensor, other: Tensor) -> float:
    """Largest |difference| over the largest number of `one`; NaN where either has one."""
    cuts = [slice(start, start + _BATCH) for start in range(0, len(one), _BATCH)]
    pairs = [(one[cut], other[cut]) for cut in cuts]
    # A maximum of tensors and not of numbers: those would lose a NaN.
    size = float(torch.stack([first.abs().max() for first, _ in pairs]).max())
    difference = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    return difference / size if size else difference


@torch.no_grad()
def _scales(model: nn.Module) -> dict[str, float]:
    return {
        f"{name}/{one.part.layer}": float(one.part.scale(name)().mean())
        for one in joined(model)
        if one.name == "weight"
        for name in one.part.names
    }


def _name(one: Joined) -> str:
    return f"{one.part.layer}.{one.name}"


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

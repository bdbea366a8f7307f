"""The promotion gate: what is measured of a merge, and the rules that let it through. Pure.

A fused model leaves the house only when every rule holds; otherwise each that is broken is told,
with by how much, and nothing is written or registered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from orchestrator.errors import OrchestratorError

TOLERANCE = 1e-5
"""Largest difference of any logit, as a fraction of the largest logit, that is still the same."""

DTYPE_TOLERANCES: Mapping[str, float] = {"float64": 1e-6, "float32": TOLERANCE, "bfloat16": 2**-6}
"""The same by the type in which both models compute.

float64: arithmetic adds nothing, so that what is left is the rounding of each fused weight to
float32, 2^-24 of it. float32: beside it, sums of a few thousand products in another order.
bfloat16: both compute under autocast, as trials in bf16 do; a fused weight that float32 rounds
otherwise may fall on the other side of a bfloat16, 2^-8 of it, and a few of those meet in a logit.
"""

APART_TOLERANCES: Mapping[str, float] = {**DTYPE_TOLERANCES, "bfloat16": 2**-5}
"""The same where the trained model computes Wx and BAx apart (LoRA).

In bfloat16 each is rounded in every layer, and the merged model rounds their sum: the two then
differ as much as either does from float32. Seen: 2^-6.0 to 2^-5.8 over 12 and 24 blocks.
"""

WEIGHT_TOLERANCES: Mapping[str, float] = {"float64": 2**-50, "float32": 2**-21}
"""Largest difference of a fused weight from W + Σ λW' in float64, as a fraction of the largest in
its tensor: eight roundings of the type. Catches a λ that is off by a hundredth down to 5e-5."""

FIGURE_TOLERANCES: Mapping[str, float] = {"fp64": 1e-9, "fp32": 2e-3, "bf16": 2**-5}
"""How far each logit may lie, as a fraction of the largest, from that behind a recorded figure.

By the trial's precision. The figure may come from another device: its convolutions multiply
numbers of 11 bits (TF32) where this one has 24, and bfloat16 has 8, rounded in every layer.
"""


class PromotionError(OrchestratorError):
    """A model cannot be exported or promoted: a proof failed, or its state is not of it."""

    exit_code = 3


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
class AtDtype:
    """Both models computed in one type: `relative_difference` is as in `Agreement`."""

    dtype: str
    samples: int
    relative_difference: float
    tolerance: float


@dataclass(frozen=True)
class Weights:
    """The fused tensor that is furthest from W + Σ λW', computed again in float64.

    `relative_difference` is over the largest number of that tensor, fused or not.
    """

    furthest: str
    relative_difference: float
    tolerance: float


@dataclass(frozen=True)
class Figure:
    """A figure that the trial recorded on validation, and the fused model's on the same samples.

    `low` and `high` are what the fused model's would be, were each logit the allowed rounding
    worse, or better: a recorded one between them is equal within the ties.
    """

    name: str
    recorded: float
    found: float
    low: float
    high: float


@dataclass(frozen=True)
class Proof:
    """What was measured before a model was let through.

    Attributes:
        keys, keys_equal: how many, and whether they are the plain model's in its order.
        keys_apart: the first place where they are not, in words.
        parameters_trained, parameters_exported, parameters_plain: of the trained model (with its
            auxiliaries), of the export and of a plain model.
        probe: compared on samples of the validation split.
        test: on the whole test split; None where it was not to be read.
        tolerance: of both.
        weights: None without a pathway.
        changed_by_zero: the tensors that fusing changed with every λ at 0.
        dtypes: the same comparison in each type.
        figures: None where no recorded ones were given.
        plain_timm: whether timm's own class took the weights, strictly, and computed the same;
            None for a model that has a tokenizer or a head of ours.
    """

    keys: int
    keys_equal: bool
    parameters_trained: int
    parameters_exported: int
    parameters_plain: int
    probe: Agreement
    test: Agreement | None
    tolerance: float = TOLERANCE
    keys_apart: str = ""
    weights: Weights | None = None
    changed_by_zero: tuple[str, ...] = ()
    dtypes: tuple[AtDtype, ...] = ()
    figures: tuple[Figure, ...] | None = None
    plain_timm: bool | None = None

    def failures(self) -> list[str]:
        """The rules that the model breaks, in words, with by how much; empty when it may go."""
        return [*self._of_state(), *self._of_outputs(), *self._of_figures()]

    def _of_state(self) -> Iterator[str]:
        if not self.keys_equal:
            apart = f": {self.keys_apart}" if self.keys_apart else ""
            yield f"its keys are not those of the plain model, in the same order{apart}"
        if self.parameters_exported != self.parameters_plain:
            yield (
                f"it has {self.parameters_exported:,} parameters where the plain model has "
                f"{self.parameters_plain:,}"
            )
        if (found := self.weights) is not None and not _within(found):
            yield (
                f"{found.furthest} differs from W + λW' by {found.relative_difference:.2e} of its "
                f"largest number (at most {found.tolerance:.0e})"
            )
        if self.changed_by_zero:
            some = ", ".join(self.changed_by_zero[:3])
            yield (
                f"with every λ at 0, fusing changed {len(self.changed_by_zero)} of the target's "
                f"tensors, bit for bit compared: {some}"
            )

    def _of_outputs(self) -> Iterator[str]:
        for name, found in (("probe", self.probe), ("test", self.test)):
            if found is not None and not found.holds:
                yield (
                    f"on {name} samples its logits differ by {found.relative_difference:.2e} "
                    f"(at most {self.tolerance:.0e}) and {found.disagreements} of "
                    f"{found.samples} predictions differ, {found.ties} of them ties"
                )
        for at in self.dtypes:
            if not _within(at):
                yield (
                    f"in {at.dtype} its logits differ by {at.relative_difference:.2e} "
                    f"(at most {at.tolerance:.0e}) on {at.samples} samples"
                )
        if self.plain_timm is False:
            yield "timm's own VisionTransformer does not take its weights, or computes otherwise"

    def _of_figures(self) -> Iterator[str]:
        if self.figures == ():
            yield "the trial recorded no figure on validation to compare with"
        for one in self.figures or ():
            if not one.low <= one.recorded <= one.high:  # a NaN is between no two numbers
                yield (
                    f"{one.name} is {one.found:.6g} on the fused model where the trial recorded "
                    f"{one.recorded:.6g}, {abs(one.found - one.recorded):.2g} apart; rounding "
                    f"explains {one.low:.6g} to {one.high:.6g}"
                )


def check(trial: str, proof: Proof) -> Proof:
    """`proof`, when every rule holds.

    Raises:
        PromotionError: names each rule that does not, and by how much.
    """
    if broken := proof.failures():
        raise PromotionError(
            f"trial {trial}: the fused model is not the trained one: {'; '.join(broken)}. Nothing "
            "was exported or registered; please report this with the trial's file"
        )
    return proof


def first_apart(found: list[str], expected: list[str]) -> str:
    """Where two lists of keys first differ, in words; "" where they do not."""
    for number, (one, other) in enumerate(zip_longest(found, expected)):
        if one != other:
            return f"number {number} is {one or 'missing'} instead of {other or 'nothing'}"
    return ""


def _within(found: AtDtype | Weights) -> bool:
    return found.relative_difference <= found.tolerance  # never, of a NaN

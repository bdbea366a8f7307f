"""What one epoch yields. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochReport:
    """One completed epoch, in plain numbers; the same on every rank.

    Metrics are named `train/loss`, `val/loss`, `val/accuracy` or the other figures of the task (0
    to 1), `learning_rate`, `pathway/norm_ratio`, `compile/graphs`; scales
    `lambda/<block>.<linear>`, or with several auxiliaries `lambda/<auxiliary>/<block>.<linear>`.
    """

    epoch: int
    """Completed epochs: the first report says 1."""
    epochs: int
    """Epochs in all."""
    metrics: dict[str, float]
    scales: dict[str, float]
    """Effective λ (envelope times value; the mean where q, k and v have their own)."""
    seconds: dict[str, float]
    """Wall-clock seconds of `train` and `evaluate`."""

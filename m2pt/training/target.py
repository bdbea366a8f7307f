"""The weights that a target starts from, and that auxiliaries lend."""

from collections.abc import Mapping

from torch import Tensor

from m2pt.weights.whole import WholeWeights

BlockWeights = Mapping[str, Tensor]
"""Canonical block weights (`m2pt.weights.blocks`)."""
TargetWeights = BlockWeights | WholeWeights
"""What a target can start from (`m2pt.weights.start`)."""

"""Attention transfer: compares where layers are active, not in which channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.validation import check_positive
from compressbench.training.losses.pairs import Shape, check_layers, check_same_positions


@dataclass(frozen=True)
class Attention:
    """Mean over the batch of ‖q(s) - q(t)‖², in [0, 4]; q(x) is the attention map of x.

    q(x) is the mean square of the features over channels, flattened to a vector over positions and
    normalised to length 1. Activation-based attention transfer of Zagoruyko and Komodakis 2017
    (arXiv:1612.03928). They also average over positions, with weight 1000; that corresponds to a
    `weight` of 1 to 16 here for maps of 32x32 to 8x8, and of 250 for 2x2.

    Args:
        layers: student layer -> teacher layer; None compares every resolution that both have.
        weight: factor of this term in the total loss, above 0.
    """

    layers: Mapping[str, str] | None = None
    weight: float = 5.0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_positive("weight", self.weight)

    def choose(self, count: int) -> Sequence[int]:
        return range(count)

    def connect(self, student: Shape, teacher: Shape) -> nn.Module | None:
        check_same_positions(student, teacher)
        return None

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, C, ...] and [B, D, ...] with equal positions -> a scalar."""
        return (_map(student) - _map(teacher)).square().sum(1).mean()


def _map(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(1).flatten(1), dim=1)

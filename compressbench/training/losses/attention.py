"""Attention transfer: where a layer is active, not with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.validation import check_positive
from compressbench.training.losses.pairs import Shape, check_layers, check_same_positions


@dataclass(frozen=True)
class Attention:
    """‖q(s) - q(t)‖², q the mean square over the channels, as a vector over the positions of length
    1; the mean over the batch, in [0, 4].

    Activation-based attention transfer of Zagoruyko and Komodakis 2017 (arXiv:1612.03928). Their
    mean over the positions, too, with a weight of 1000, is a `weight` of 1 to 16 here for maps of
    32x32 to 8x8, and would be 250 for 2x2. `layers` maps layers of the student to layers of the
    teacher; None takes every resolution that both have.
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
        """Features [B, C, ...] and [B, D, ...] of the same positions -> a scalar."""
        return (_map(student) - _map(teacher)).square().sum(1).mean()


def _map(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(1).flatten(1), dim=1)

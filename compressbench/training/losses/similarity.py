"""Similarity-preserving distillation: compares which samples of a batch are similar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.validation import check_positive
from compressbench.training.losses.pairs import Shape, check_layers


@dataclass(frozen=True)
class Similarity:
    """‖G(s) - G(t)‖² / B²; G(x) is the Gram matrix of the features of B samples, with its rows
    normalised to length 1.

    Tung and Mori 2019 (arXiv:1907.09682). Features may have any shape.

    Args:
        layers: student layer -> teacher layer; None takes the last resolution that both have.
        weight: factor of this term in the total loss, above 0; 3000 is the authors' value.
    """

    layers: Mapping[str, str] | None = None
    weight: float = 3000.0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_positive("weight", self.weight)

    def choose(self, count: int) -> Sequence[int]:
        return [count - 1]

    def connect(self, student: Shape, teacher: Shape) -> nn.Module | None:
        return None

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] and [B, ...] -> a scalar."""
        return (_gram(student) - _gram(teacher)).square().mean()


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)

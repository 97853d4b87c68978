"""Relational knowledge distillation: distances and angles between samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_not_negative, check_positive
from compressbench.training.losses.pairs import Shape, check_layers

_ROUNDING = 1e-12  # squared distances below this share of the mean squared norm are zero


@dataclass(frozen=True)
class Rkd:
    """distance · mean h(d(s) - d(t)) + angle · mean h(a(s) - a(t)), h the Huber loss of width 1.

    d are the distances of all pairs of samples, divided by their mean; a are the cosines of the
    angles of all triplets (Park et al. 2019, arXiv:1904.05068). Features may have any shape.

    Args:
        distance: weight of the distances, at least 0; 25 is the authors' value for classifiers.
        angle: weight of the angles, at least 0; the authors use 50.
        layers: student layer -> teacher layer; None takes the last resolution that both have.
        weight: factor of this term in the total loss, above 0.
    """

    distance: float = 25.0
    angle: float = 50.0
    layers: Mapping[str, str] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("distance", self.distance)
        check_not_negative("angle", self.angle)
        if self.distance == self.angle == 0:
            raise UserError("distance and angle are both 0: nothing would be distilled")
        check_layers(self.layers)
        check_positive("weight", self.weight)

    def choose(self, count: int) -> Sequence[int]:
        return [count - 1]

    def connect(self, student: Shape, teacher: Shape) -> nn.Module | None:
        return None

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] and [B, ...] -> a scalar."""
        (s, s_square), (t, t_square) = (_products(x) for x in (student, teacher))
        total = s.new_zeros(())
        if self.distance:
            total = total + self.distance * F.smooth_l1_loss(
                distances(s_square), distances(t_square)
            )
        if self.angle:
            total = total + self.angle * F.smooth_l1_loss(
                cosines(s, s_square), cosines(t, t_square)
            )
        return total.to(student.dtype)


def _products(features: Tensor) -> tuple[Tensor, Tensor]:
    """Dot products and squared distances of all pairs of samples, float64 [B, B] each.

    Distances and angles follow from them, without a tensor of all differences.
    """
    flat = features.flatten(1).double()
    products = flat @ flat.T
    length = products.diagonal()
    square = length[:, None] + length[None, :] - 2 * products
    return products, torch.where(square > _ROUNDING * length.mean(), square, 0.0)


def distances(square: Tensor) -> Tensor:
    """Distances [B, B] from their squares, divided by the mean of the nonzero ones."""
    distance = _root(square)
    mean = distance.sum() / (square > 0).sum().clamp(min=1)
    return distance / mean.clamp(min=torch.finfo(distance.dtype).tiny)


def cosines(products: Tensor, square: Tensor) -> Tensor:
    """Cosines [B, B, B]; entry j, i, k is for the angle at sample j between samples i and k."""
    length, distance = products.diagonal(), _root(square)
    between = (
        products[None, :, :] - products[:, :, None] - products[:, None, :] + length[:, None, None]
    )
    sides = distance[:, :, None] * distance[:, None, :]
    return torch.where(sides > 0, between / torch.where(sides > 0, sides, 1.0), 0.0)


def _root(square: Tensor) -> Tensor:
    """Square root with gradient 0 at 0."""
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)

"""Relational distillation: distances and angles between the samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_not_negative, check_positive
from compressbench.training.losses.pairs import Shape, check_layers

_ROUNDING = 1e-12  # squares below this share of a sample's own are zero


@dataclass(frozen=True)
class Rkd:
    """distance · h(d(s) - d(t)) + angle · h(a(s) - a(t)), means, h the Huber loss of width 1.

    Of Park et al. 2019 (arXiv:1904.05068): d are the distances of all pairs of samples over their
    mean, a the cosines of the angles of all triplets. `distance` and `angle` weigh the two,
    `weight` the term in the sum; 25 and 50 are theirs for classifiers. Features may have any
    shape. `layers` maps layers of the student to layers of the teacher; None takes the last
    resolution that both have.
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
        found = s.new_zeros(())
        if self.distance:
            found = found + self.distance * F.smooth_l1_loss(
                distances(s_square), distances(t_square)
            )
        if self.angle:
            found = found + self.angle * F.smooth_l1_loss(
                cosines(s, s_square), cosines(t, t_square)
            )
        return found.to(student.dtype)


def _products(features: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [B, B]: products of all pairs of samples, and squares of their distances.

    All that is asked of the samples follows from them, without a tensor of all differences.
    """
    flat = features.flatten(1).double()
    products = flat @ flat.T
    length = products.diagonal()
    square = length[:, None] + length[None, :] - 2 * products
    return products, torch.where(square > _ROUNDING * length.mean(), square, 0.0)


def distances(square: Tensor) -> Tensor:
    """[B, B] distances, from their squares, over the mean of those that are not zero."""
    found = _root(square)
    mean = found.sum() / (square > 0).sum().clamp(min=1)
    return found / mean.clamp(min=torch.finfo(found.dtype).tiny)


def cosines(products: Tensor, square: Tensor) -> Tensor:
    """[B, B, B] at j, i, k: the cosine of the angle at sample j between those to i and to k."""
    length, distance = products.diagonal(), _root(square)
    between = (
        products[None, :, :] - products[:, :, None] - products[:, None, :] + length[:, None, None]
    )
    sides = distance[:, :, None] * distance[:, None, :]
    return torch.where(sides > 0, between / torch.where(sides > 0, sides, 1.0), 0.0)


def _root(square: Tensor) -> Tensor:
    """Square roots whose gradient at zero is zero."""
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)

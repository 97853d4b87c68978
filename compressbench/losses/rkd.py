"""Relational distillation: distances and angles between the samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.checks import check_not_negative, check_positive
from compressbench.core import UserError
from compressbench.losses.pairs import Shape, check_layers


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
        s, t = student.flatten(1), teacher.flatten(1)
        found = student.new_zeros(())
        if self.distance:
            found = found + self.distance * F.smooth_l1_loss(distances(s), distances(t))
        if self.angle:
            found = found + self.angle * F.smooth_l1_loss(cosines(s), cosines(t))
        return found


def distances(features: Tensor) -> Tensor:
    """[B, B] Euclidean distances over the mean of those that are not zero."""
    square = (features[:, None] - features[None, :]).square().sum(-1)
    apart = square > 0
    found = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
    return found / (found.sum() / apart.sum().clamp(min=1)).clamp(min=torch.finfo(found.dtype).tiny)


def cosines(features: Tensor) -> Tensor:
    """[B, B, B] at j, i, k: the cosine of the angle at sample j between those to i and to k."""
    towards = F.normalize(features[None, :] - features[:, None], dim=2)
    return towards @ towards.transpose(1, 2)

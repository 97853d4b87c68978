"""Hints: fits the projected features of the student to those of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_positive
from compressbench.training.losses.pairs import Shape, check_layers, check_same_positions


@dataclass(frozen=True)
class FitNets:
    """Mean of (r(s) - t)²; r is a learned 1x1 convolution (or linear map) if widths differ.

    Hints of Romero et al. 2015 (arXiv:1412.6550). Their regressor also matches resolutions, and
    they train on hints before distilling from outputs; here both losses can be terms of one sum.

    Args:
        layers: student layer -> teacher layer; None takes the middle one of the resolutions that
            both have.
        weight: factor of this term in the total loss, above 0.
    """

    layers: Mapping[str, str] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_positive("weight", self.weight)

    def choose(self, count: int) -> Sequence[int]:
        return [count // 2]

    def connect(self, student: Shape, teacher: Shape) -> nn.Module | None:
        if len(student) == len(teacher) == 1:
            return None if student == teacher else nn.Linear(student[0], teacher[0])
        check_same_positions(student, teacher)
        if student[0] == teacher[0]:
            return None
        kinds = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
        if len(student) not in kinds:
            raise UserError(f"features of shape {list(student)} cannot be projected")
        projection: nn.Module = kinds[len(student)](student[0], teacher[0], 1)
        return projection

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] of equal shapes -> a scalar."""
        return F.mse_loss(student, teacher)

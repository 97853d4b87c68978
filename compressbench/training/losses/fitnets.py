"""Hints: a student's features, projected, are to be the teacher's."""

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
    """mean (r(s) - t)², r a learned 1x1 convolution (linear map for vectors) where widths differ.

    Of Romero et al. 2015 (arXiv:1412.6550), whose regressor is as large as the features; theirs is
    a stage before the distillation from outputs, here both are one sum. `layers` maps layers of
    the student to layers of the teacher; None takes the middle one of the resolutions that both
    have. `weight` is that of the term in the sum.
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
        made: nn.Module = kinds[len(student)](student[0], teacher[0], 1)
        return made

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] of one shape -> a scalar."""
        return F.mse_loss(student, teacher)

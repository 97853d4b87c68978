"""Knowledge distillation from the softened outputs of a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.task import Distribution, Task
from compressbench.core.validation import check_positive, is_number
from compressbench.tasks.classification import CLASSIFICATION


@dataclass(frozen=True)
class Hinton:
    """alpha T² KL(softmax(t / T) ‖ softmax(s / T)) + (1 - alpha) CE(s, y), averaged over the batch
    (for token classification over all labelled positions).

    Hinton, Vinyals and Dean 2015 (arXiv:1503.02531). The factor T² keeps the gradients of both
    terms at a similar magnitude.

    Args:
        temperature: T > 0; softens both distributions.
        alpha: weight of the distillation term, in [0, 1].
    """

    sees_task: ClassVar[bool] = True
    distributions: ClassVar[tuple[Distribution, ...]] = ("classes", "binary")

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        if not is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must be a number in [0, 1], got {self.alpha!r}")

    def __call__(
        self, student: Tensor, teacher: Tensor, targets: Tensor, task: Task = CLASSIFICATION
    ) -> Tensor:
        """Scores of student and teacher, the targets of `task` -> a scalar."""
        student, teacher, targets = task.labelled(student, teacher, targets)
        soft = task.divergence(teacher, student, self.temperature) / len(student)
        hard = task.loss(student, targets)
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard

"""Distillation by regression on the teacher's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.task import Task
from compressbench.core.validation import is_number
from compressbench.tasks.classification import CLASSIFICATION


@dataclass(frozen=True)
class Logits:
    """alpha mean |s - t|^n + (1 - alpha) CE(s, y), with n = 1 (`norm` "l1") or 2 ("l2").

    The mean is over classes and samples (for token classification over labelled positions). "l2" is
    the loss of Ba and Caruana 2014 (arXiv:1312.6184); for zero-mean logits it is also the limit of
    Hinton's loss at high temperature (Hinton et al. 2015, arXiv:1503.02531, section 2.1).

    Args:
        norm: "l1" or "l2".
        alpha: weight of the distillation term, in [0, 1].
    """

    sees_task: ClassVar[bool] = True

    norm: Literal["l1", "l2"] = "l2"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise UserError(f"norm must be l1 or l2, got {self.norm!r}")
        if not is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must be a number in [0, 1], got {self.alpha!r}")

    def __call__(
        self, student: Tensor, teacher: Tensor, targets: Tensor, task: Task = CLASSIFICATION
    ) -> Tensor:
        """Answers of student and teacher, and the targets, of any `task` -> a scalar."""
        student, teacher, targets = task.labelled(student, teacher, targets)
        distance = F.l1_loss if self.norm == "l1" else F.mse_loss
        soft = distance(student, teacher)
        return self.alpha * soft + (1 - self.alpha) * task.loss(student, targets)

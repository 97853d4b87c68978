"""Knowledge distillation from the teacher's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from compressbench.core import UserError


@dataclass(frozen=True)
class Hinton:
    """alpha T² KL(softmax(t / T) ‖ softmax(s / T)) + (1 - alpha) CE(s, y), means over the batch.

    `temperature` T > 0 softens both; `alpha` in [0, 1] weighs the distillation term; T² keeps
    its gradient at the size of the other's (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).
    """

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        for name in ("temperature", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must be in [0, 1], got {self.alpha}")

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, K], logits [B, K], labels int64 [B] -> a scalar."""
        soft = F.kl_div(
            F.log_softmax(student / self.temperature, dim=1),
            F.log_softmax(teacher / self.temperature, dim=1),
            log_target=True,
            reduction="batchmean",
        )
        hard = F.cross_entropy(student, targets)
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard

"""Knowledge distillation from the softened outputs of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_positive, is_number
from compressbench.training.losses.positions import labelled


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

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        if not is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must be a number in [0, 1], got {self.alpha!r}")

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Logits [..., K] twice, labels int64 [...] (-100: unlabelled) -> a scalar."""
        student, teacher, targets = labelled(student, teacher, targets)
        soft = F.kl_div(
            F.log_softmax(student / self.temperature, dim=1),
            F.log_softmax(teacher / self.temperature, dim=1),
            log_target=True,
            reduction="batchmean",
        )
        hard = F.cross_entropy(student, targets)
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * hard

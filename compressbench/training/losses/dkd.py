"""Decoupled knowledge distillation: separate terms for the target and the other classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from compressbench.core.task import Distribution
from compressbench.core.validation import check_not_negative, check_positive
from compressbench.tasks.classification import CLASSIFICATION


@dataclass(frozen=True)
class Dkd:
    """CE(s, y) + T² (alpha TCKD + beta NCKD), averaged over the batch, or over all labelled
    positions for token classification (Zhao et al. 2022, arXiv:2203.08679).

    Both terms are Kullback-Leibler divergences from the teacher's softmax(logits / T): TCKD between
    the two-way distributions (target class, all other classes), NCKD between the distributions over
    the other classes. Hinton's divergence is TCKD + (1 - p) NCKD, where p is the teacher's
    probability of the target class, so it nearly ignores the other classes where the teacher is
    confident.

    Args:
        temperature: T, above 0.
        alpha: weight of TCKD, at least 0.
        beta: weight of NCKD, at least 0.
    """

    distributions: ClassVar[tuple[Distribution, ...]] = ("classes",)

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_not_negative("alpha", self.alpha)
        check_not_negative("beta", self.beta)

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Logits [..., K] twice, labels int64 [...] (-100: unlabelled) -> a scalar."""
        student, teacher, targets = CLASSIFICATION.labelled(student, teacher, targets)
        target, others = decoupled(student / self.temperature, teacher / self.temperature, targets)
        soft = self.alpha * target.mean() + self.beta * others.mean()
        return F.cross_entropy(student, targets) + self.temperature**2 * soft


def decoupled(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD per sample, [B] each, of logits [B, K] with K >= 2."""
    (s_binary, s_others), (t_binary, t_others) = (_split(x, targets) for x in (student, teacher))
    return _divergence(s_binary, t_binary), _divergence(s_others, t_others)


def _split(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, all other classes) [B, 2], and of the others [B, K - 1]."""
    rows, classes = logits.shape
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, targets[:, None], False)
    rest = logits[others].view(rows, classes - 1)
    pair = torch.cat([logits.gather(1, targets[:, None]), rest.logsumexp(1, keepdim=True)], 1)
    return pair.log_softmax(1), rest.log_softmax(1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(1)

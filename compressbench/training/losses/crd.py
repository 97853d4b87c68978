"""Contrastive distillation: a student's sample is to be told from others by the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer, check_positive
from compressbench.training.losses.pairs import Shape, check_layers


@dataclass(frozen=True)
class Crd:
    """-1/B sum over i of [log h(s_i, t_i) + sum over j in N(i) of log(1 - h(s_i, t_j))], and the
    same with s and t exchanged.

    h(a, b) = e(a, b) / (e(a, b) + |N(i)| z), e(a, b) = exp(a.b / temperature), z the mean of e over
    the negatives of the batch (a constant: no gradient), and N(i) the samples of the batch in other
    classes than i. s and t are what student and teacher give, averaged over positions, through a
    learned linear map each to `dimensions` numbers, and of length 1.

    Noise-contrastive estimation of Tian et al. 2020 (arXiv:1910.10699, equation 18). There 16,384
    negatives come from a memory of both embeddings of the whole training set, a step or an epoch
    old, and z is estimated once, in the first batch; here they are in the batch, fresh, so they are
    as many as `batch_size` gives and nothing is remembered. Their `temperature` is 0.07, their
    weight 0.8. `layers` maps layers of the student to layers of the teacher; None takes the last
    resolution that both have, of which the mean over positions is what their classifiers see.
    """

    sees_labels: ClassVar[bool] = True

    temperature: float = 0.07
    dimensions: int = 128
    layers: Mapping[str, str] | None = None
    weight: float = 0.8

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_integer("dimensions", self.dimensions, 1)
        check_layers(self.layers)
        check_positive("weight", self.weight)

    def choose(self, count: int) -> Sequence[int]:
        return [count - 1]

    def connect(self, student: Shape, teacher: Shape) -> nn.Module:
        if not student or not teacher:
            raise UserError(
                f"{list(student)} of the student and {list(teacher)} of the teacher: at least one "
                "axis beside the batch is needed"
            )
        return Embeddings(student[0], teacher[0], self.dimensions)

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Embeddings [B, D] and [B, D], labels int64 [B] -> a scalar; 0 without negatives."""
        if targets.ndim != 1:
            raise UserError(f"crd needs one label a sample, got labels {list(targets.shape)}")
        logits = student @ teacher.T  # [B, B]
        exact = torch.promote_types(logits.dtype, torch.float32)  # counts pass what float16 holds
        logits = logits.to(exact) / self.temperature
        others = targets[:, None] != targets[None, :]
        if not bool(others.any()):
            return 0.0 * logits.sum()
        noise = log_noise(logits.detach(), others)
        return contrast(logits, others, noise) + contrast(logits.T, others, noise)


class Embeddings(nn.Module):
    """Features [B, C, ...] -> [B, dimensions] of length 1; called for the student's."""

    def __init__(self, student: int, teacher: int, dimensions: int) -> None:
        super().__init__()
        self.student = nn.Linear(student, dimensions)
        self.teacher = nn.Linear(teacher, dimensions)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.student(_pooled(features)), dim=1)

    def of_teacher(self, features: Tensor) -> Tensor:
        return F.normalize(self.teacher(_pooled(features)), dim=1)


def _pooled(features: Tensor) -> Tensor:
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def log_noise(logits: Tensor, others: Tensor) -> Tensor:
    """log(|N(i)| z) [B] of `logits` [B, B]: `others` marks N(i) in row i, and is symmetric."""
    counts = others.sum(1).to(logits.dtype)
    mean = logits.masked_fill(~others, -torch.inf).flatten().logsumexp(0) - counts.sum().log()
    return mean + counts.clamp(min=1).log()  # a row without negatives has no say


def contrast(logits: Tensor, others: Tensor, noise: Tensor) -> Tensor:
    """One half of the loss, rows being the anchors.

    log h = log sigmoid(logit - noise), and log(1 - h) the log sigmoid of its negative.
    """
    distance = logits - noise[:, None]
    negative = torch.where(others, F.logsigmoid(-distance), 0.0).sum(1)
    found = F.logsigmoid(distance.diagonal()) + negative
    return -torch.where(others.any(1), found, 0.0).mean()

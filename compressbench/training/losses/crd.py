"""Contrastive representation distillation: a student embedding must match the teacher's
embedding of the same sample, and differ from those of samples of other classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.task import Distribution
from compressbench.core.validation import check_integer, check_positive
from compressbench.training.losses.pairs import Shape, check_layers


@dataclass(frozen=True)
class Crd:
    """-1/B sum over i of [log h(s_i, t_i) + sum over j in N(i) of log(1 - h(s_i, t_j))], plus the
    same with s and t exchanged.

    h(a, b) = e(a, b) / (e(a, b) + |N(i)| z) with e(a, b) = exp(a.b / temperature). N(i) are the
    samples of the batch whose class differs from that of i; z is the mean of e over all negatives
    of the batch and gets no gradient. The embeddings s and t are the features of student and
    teacher, averaged over positions, mapped by one learned linear layer each and normalised to
    length 1.

    Noise-contrastive estimation of Tian et al. 2020 (arXiv:1910.10699, equation 18). They draw
    16,384 negatives from a memory bank of both embeddings of the training set, and estimate z once,
    in the first batch; here the negatives come from the current batch, so their number depends on
    `batch_size` and no memory bank is needed. The default `temperature` and `weight` are theirs.

    Args:
        temperature: divides the dot products, above 0.
        dimensions: size of the embeddings.
        layers: student layer -> teacher layer; None takes the last resolution that both have, whose
            mean over positions is usually the input of the classifier.
        weight: factor of this term in the total loss, above 0.
    """

    sees_labels: ClassVar[bool] = True
    distributions: ClassVar[tuple[Distribution, ...]] = ("classes",)

    temperature: float = 0.07
    dimensions: int = 128
    layers: Mapping[str, str] | None = None
    weight: float = 0.8

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_integer("dimensions", self.dimensions, 1, 2**16)
        check_layers(self.layers)
        check_positive("weight", self.weight)

    def choose(self, count: int) -> Sequence[int]:
        return [count - 1]

    def connect(self, student: Shape, teacher: Shape) -> nn.Module:
        if not student or not teacher:
            raise UserError(
                f"{list(student)} of the student and {list(teacher)} of the teacher: at least one "
                "axis besides the batch is needed"
            )
        return Embeddings(student[0], teacher[0], self.dimensions)

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Embeddings [B, D] and [B, D], labels int64 [B] -> a scalar; 0 without negatives."""
        if targets.ndim != 1:
            raise UserError(f"crd needs one label per sample, got labels {list(targets.shape)}")
        logits = student @ teacher.T  # [B, B]
        exact = torch.promote_types(logits.dtype, torch.float32)  # counts may overflow float16
        logits = logits.to(exact) / self.temperature
        others = targets[:, None] != targets[None, :]
        if not bool(others.any()):
            return 0.0 * logits.sum()
        noise = log_noise(logits.detach(), others)
        return contrast(logits, others, noise) + contrast(logits.T, others, noise)


class Embeddings(nn.Module):
    """Maps features [B, C, ...] to [B, dimensions] of length 1; `forward` is for the student."""

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
    """log(|N(i)| z), [B], for `logits` [B, B]; row i of `others` (symmetric) marks N(i)."""
    counts = others.sum(1).to(logits.dtype)
    mean = logits.masked_fill(~others, -torch.inf).flatten().logsumexp(0) - counts.sum().log()
    return mean + counts.clamp(min=1).log()  # `contrast` skips rows without negatives


def contrast(logits: Tensor, others: Tensor, noise: Tensor) -> Tensor:
    """One half of the loss, with the rows as anchors.

    log h = log sigmoid(logit - noise) and log(1 - h) = log sigmoid(noise - logit).
    """
    distance = logits - noise[:, None]
    negative = torch.where(others, F.logsigmoid(-distance), 0.0).sum(1)
    likelihood = F.logsigmoid(distance.diagonal()) + negative
    return -torch.where(others.any(1), likelihood, 0.0).mean()

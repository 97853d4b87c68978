"""Multi-label classification: any number of K labels per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.task import Distribution, Reduction
from compressbench.core.types import DataSpec, Split
from compressbench.tasks.numbers import check_numbers


@dataclass(frozen=True)
class MultiLabel:
    """One logit per label, [N, K]; a label is given if its logit is above 0. Targets are float32
    [N, K] of 0 and 1.

    The loss is the mean binary cross-entropy. Metrics: `mean_ap` (average precision, the area under
    precision against recall, as mean over the labels that occur), `micro_f1`, `exact_match` (the
    share of samples with all labels right).
    """

    name: ClassVar[str] = "multilabel"
    metrics: ClassVar[tuple[str, ...]] = ("mean_ap", "micro_f1", "exact_match")
    running: ClassVar[str] = "label_accuracy"
    distribution: ClassVar[Distribution] = "binary"
    decides: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def outputs(self, spec: DataSpec) -> int:
        return spec.num_classes

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return (spec.num_classes,)

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        check_numbers(split.targets, self.shape(spec), where)
        wrong = ((split.targets != 0) & (split.targets != 1)).any(1).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{where}: targets must be 0 or 1 per label, sample {row} has "
                f"{split.targets[row].tolist()[:8]}"
            )

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Binary cross-entropy, mean over the labels; smoothing moves 0 and 1 towards 1/2."""
        smooth = targets * (1 - label_smoothing) + 0.5 * label_smoothing
        each = F.binary_cross_entropy_with_logits(answers, smooth, reduction="none").mean(1)
        return each.mean() if reduction == "mean" else each.sum()

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return student, teacher, targets

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        right = ((answers > 0) == (targets > 0.5)).float().mean(1)
        return right.sum(), right.new_tensor(len(right))

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """Sum over samples and labels of the KL divergence of two Bernoulli distributions, nats."""
        p, q = given / temperature, answers / temperature
        probability = p.sigmoid()
        return (
            probability * (F.logsigmoid(p) - F.logsigmoid(q))
            + (1 - probability) * (F.logsigmoid(-p) - F.logsigmoid(-q))
        ).sum()

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        if metric == "exact_match":
            return int(((answers > 0) == (targets > 0.5)).all(1).sum()) / len(targets)
        from torchmetrics.functional import classification

        labels = answers.shape[1]
        if metric == "micro_f1":
            return float(
                classification.multilabel_f1_score(
                    (answers > 0).int(), targets.int(), labels, average="micro"
                )
            )
        occurring = (targets > 0.5).any(0).nonzero().flatten()
        precisions = [
            classification.binary_average_precision(answers[:, k].double(), targets[:, k].int())
            for k in occurring.tolist()
        ]
        return float(torch.stack(precisions).mean()) if precisions else 0.0

    def rows(self, answers: Tensor) -> Tensor:
        """[N K, 2]: each label is decided against 0."""
        flat = answers.reshape(-1, 1)
        return torch.cat([torch.zeros_like(flat), flat], 1)

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        """For precision, the share of each label; else the score of the labels that most have."""
        if metric == "mean_ap":
            shares = targets.double().mean(0)
            return float(shares[shares > 0].mean()) if bool((shares > 0).any()) else None
        constant = torch.where(targets.mean(0) > 0.5, 1.0, -1.0)
        return self.score(metric, constant.expand_as(targets), targets)

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {"shape": ["batch", spec.num_classes], "values": "logits; a label is given above 0"}

"""Classification: one class per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.task import IGNORED, Distribution, Reduction
from compressbench.core.types import DataSpec, Split


@dataclass(frozen=True)
class Classification:
    """Scores of K classes per sample, [N, K], of which the largest decides; targets int64 [N]."""

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy", "f1")
    running: ClassVar[str] = "accuracy"
    distribution: ClassVar[Distribution] = "classes"
    decides: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def outputs(self, spec: DataSpec) -> int:
        return spec.num_classes

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return (spec.num_classes,)

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        check_classes(split.targets, 1, spec, where)

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Cross-entropy of logits [..., K] with labels [...]; -100 marks unlabelled positions."""
        return F.cross_entropy(
            answers.flatten(0, -2),
            targets.flatten(),
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [..., K] twice and labels [...] -> [M, K], [M, K] and [M]."""
        kept = targets != IGNORED
        return student[kept], teacher[kept], targets[kept]

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (answers.argmax(-1) == targets).sum(), (targets != IGNORED).sum()

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """Sum of KL(softmax(given / T) || softmax(answers / T)) in nats.

        At T = 1 this is the cross-entropy against the given predictions minus their entropy.
        """
        return F.kl_div(
            (answers / temperature).log_softmax(-1),
            (given / temperature).log_softmax(-1),
            reduction="sum",
            log_target=True,
        )

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        """`accuracy` (top-1), `balanced_accuracy` (mean recall over the classes) or `f1` (mean over
        the classes), in [0, 1].
        """
        return class_score(metric, answers, targets)

    def rows(self, answers: Tensor) -> Tensor:
        return answers

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        return best_class(metric, targets, spec.num_classes)

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {"shape": ["batch", spec.num_classes]}


CLASSIFICATION = Classification()  # what a dataset asks for that names no task


def class_score(metric: str, logits: Tensor, targets: Tensor) -> float:
    """Accuracy, balanced accuracy or F1 of logits [M, K] and class numbers [M]."""
    chosen, classes = logits.argmax(1), logits.shape[1]
    if metric == "accuracy":  # exact: torchmetrics rounds to float32
        return int((chosen == targets).sum()) / len(targets)
    from torchmetrics.functional import classification

    if metric == "f1":
        return float(classification.multiclass_f1_score(chosen, targets, classes, "macro"))
    return float(classification.multiclass_accuracy(chosen, targets, classes, "macro"))


def best_class(metric: str, targets: Tensor, classes: int) -> float | None:
    """Accuracy of the most frequent class, or somewhat more than an even chance."""
    if metric != "accuracy":
        return 1.1 / classes
    return max(1.1 / classes, float(torch.bincount(targets).max()) / len(targets))


def check_classes(targets: Tensor, axes: int, spec: DataSpec, where: str) -> None:
    """Raise UserError unless targets are class numbers with `axes` axes, -100 where there is none
    if a sample has several.
    """
    if targets.dtype != torch.int64 or targets.ndim != axes:
        kind = str(targets.dtype).removeprefix("torch.")
        raise UserError(
            f"{where}: targets must be int64 with {axes} axes, got {kind} {list(targets.shape)}"
        )
    wrong = (targets < 0) | (targets >= spec.num_classes)
    if axes > 1:
        wrong &= targets != IGNORED
    if bool(wrong.any()):
        row = int(wrong.flatten(1).any(1).nonzero()[0] if axes > 1 else wrong.nonzero()[0])
        raise UserError(
            f"{where}: sample {row} has the class {int(targets[wrong][0])}, but there are "
            f"{spec.num_classes} classes"
        )

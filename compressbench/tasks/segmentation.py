"""Segmentation: one class per pixel."""

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
from compressbench.tasks.classification import check_classes


@dataclass(frozen=True)
class Segmentation:
    """Scores of K classes per pixel, [N, K, H, W]; targets int64 [N, H, W], -100 where a pixel has
    no label.

    Metrics: `mean_iou`, the mean over the classes that occur or are answered of intersection over
    union; `pixel_accuracy`.
    """

    name: ClassVar[str] = "segmentation"
    metrics: ClassVar[tuple[str, ...]] = ("mean_iou", "pixel_accuracy")
    running: ClassVar[str] = "pixel_accuracy"
    distribution: ClassVar[Distribution] = "classes"
    decides: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def outputs(self, spec: DataSpec) -> int:
        return spec.num_classes

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return (spec.num_classes, *spec.input_shape[1:])

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        check_classes(split.targets, 3, spec, where)
        if tuple(split.targets.shape[1:]) != tuple(spec.input_shape[1:]):
            raise UserError(
                f"{where}: masks are {list(split.targets.shape[1:])}, but images "
                f"{list(spec.input_shape[1:])}"
            )

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Cross-entropy of scores [N, K, ...] with labels [N, ...]."""
        return F.cross_entropy(
            answers, targets, label_smoothing=label_smoothing, reduction=reduction
        )

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = (targets != IGNORED).flatten()
        return self.rows(student)[kept], self.rows(teacher)[kept], targets.flatten()[kept]

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (answers.argmax(1) == targets).sum(), (targets != IGNORED).sum()

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """Sum over pixels of the KL divergence in nats; classes are axis 1."""
        return F.kl_div(
            (answers / temperature).log_softmax(1),
            (given / temperature).log_softmax(1),
            reduction="sum",
            log_target=True,
        )

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        kept = targets != IGNORED
        chosen, right = answers.argmax(1)[kept], targets[kept]
        if metric == "pixel_accuracy":
            return int((chosen == right).sum()) / len(right)
        return mean_iou(chosen, right, answers.shape[1])

    def rows(self, answers: Tensor) -> Tensor:
        if answers.ndim == 2:  # rows already
            return answers
        return answers.movedim(1, -1).flatten(0, -2)

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        labels = targets[targets != IGNORED]
        counts = torch.bincount(labels, minlength=spec.num_classes)
        if metric == "pixel_accuracy":
            return float(counts.max()) / len(labels)
        return mean_iou(counts.argmax().expand_as(labels), labels, spec.num_classes)

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {"shape": ["batch", *self.shape(spec)], "values": "the largest score of a pixel"}


def mean_iou(chosen: Tensor, right: Tensor, classes: int) -> float:
    """Mean over the classes that occur or are chosen of |both| / |either|, of labels [M]."""
    pairs = torch.bincount(right * classes + chosen, minlength=classes**2).double()
    table = pairs.view(classes, classes)
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    return float((both / either)[either > 0].mean())

"""No labels: a model is judged by how faithful it is to the float model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressbench.core.task import Distribution, Reduction
from compressbench.core.types import DataSpec, Split
from compressbench.tasks.classification import CLASSIFICATION
from compressbench.tasks.numbers import squared_error


@dataclass(frozen=True)
class Unlabelled:
    """Inputs alone, for a model that was trained elsewhere; targets of a split do not count.

    Targets of `score` are the answers of the float model. The metric `fidelity` is the share of
    samples with the same largest score, or for answers that are no scores of classes
    1 - |difference| / |float answer - mean|, both as root mean squares, at least 0.

    Args:
        scores: whether the largest of the numbers that a model answers decides.
    """

    name: ClassVar[str] = "unlabelled"
    metrics: ClassVar[tuple[str, ...]] = ("fidelity",)
    running: ClassVar[str] = "samples"
    learns: ClassVar[bool] = False

    scores: bool = True

    @property
    def decides(self) -> bool:
        return self.scores

    @property
    def distribution(self) -> Distribution:
        return "classes" if self.scores else ""

    def outputs(self, spec: DataSpec) -> int:
        return spec.num_classes

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        """The names' number, if there are names; else whatever the model answers."""
        return (spec.num_classes,) if spec.num_classes else ()

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        """Nothing can be wrong with targets that do not count."""

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """0: what there is to learn comes from a teacher."""
        return (answers * 0.0).sum()

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return student, teacher, targets

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = answers.new_tensor(len(answers))
        return count, count

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        if self.scores:
            return CLASSIFICATION.divergence(given, answers, temperature)
        return squared_error(answers, given, "sum")

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        if self.scores:
            return float((answers.argmax(1) == targets.argmax(1)).double().mean())
        apart = (answers - targets).double().square().mean().sqrt()
        varies = (targets - targets.mean(0)).double().square().mean().sqrt()
        return float((1 - apart / varies.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0))

    def rows(self, answers: Tensor) -> Tensor:
        return answers.flatten(1)

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        return None

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {"shape": ["batch", spec.num_classes or "numbers"]}

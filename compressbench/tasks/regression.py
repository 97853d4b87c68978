"""Regression: numbers per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressbench.core.task import Distribution, Reduction
from compressbench.core.types import DataSpec, Split
from compressbench.tasks.numbers import check_numbers, refuse_smoothing, squared_error


@dataclass(frozen=True)
class Regression:
    """D numbers per sample, [N, D], called by the dataset's `class_names`; targets float32 [N, D].

    The loss is the mean squared error. Metrics: `rmse` and `mae` over all numbers; `r2`, the share
    of the variance that is explained, mean over the D numbers.

    Args:
        offset, scale: D numbers each, chosen by the dataset: targets and answers are (values -
            offset) / scale, and `rmse` and `mae` are those of the values. None: targets are the
            values.
    """

    name: ClassVar[str] = "regression"
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "r2")
    running: ClassVar[str] = "mae"
    distribution: ClassVar[Distribution] = ""
    decides: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    offset: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def outputs(self, spec: DataSpec) -> int:
        return spec.num_classes

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return (spec.num_classes,)

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        check_numbers(split.targets, self.shape(spec), where)

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        refuse_smoothing(label_smoothing, self.name)
        return squared_error(answers, targets, reduction)

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return student, teacher, targets

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        each = (answers - targets).abs().flatten(1).mean(1)
        return each.sum(), each.new_tensor(len(each))

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """The sum over samples of the mean squared difference; a temperature means nothing."""
        return squared_error(answers, given, "sum")

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        apart = (answers - targets).double()
        if metric != "r2" and self.scale is not None:
            apart *= torch.tensor(self.scale, dtype=torch.float64)
        if metric == "rmse":
            return float(apart.square().mean().sqrt())
        if metric == "mae":
            return float(apart.abs().mean())
        varies = (targets - targets.double().mean(0)).square().sum(0)
        unexplained = apart.square().sum(0) / varies.clamp_min(torch.finfo(torch.float64).tiny)
        return float((1 - unexplained).mean())

    def rows(self, answers: Tensor) -> Tensor:
        return answers.flatten(1)

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        """The score of the mean, or for `mae` of the median, of the same targets."""
        middle = targets.median(0).values if metric == "mae" else targets.double().mean(0)
        return self.score(metric, middle.expand_as(targets), targets)

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {
            "shape": ["batch", spec.num_classes],
            "values": list(spec.class_names),
            "offset": list(self.offset or [0.0] * spec.num_classes),
            "scale": list(self.scale or [1.0] * spec.num_classes),
        }

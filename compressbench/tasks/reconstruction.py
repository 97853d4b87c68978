"""Reconstruction: auto-encoders, whose error tells anomalies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.task import Distribution, Reduction
from compressbench.core.types import DataSpec, Split
from compressbench.tasks.numbers import refuse_smoothing


@dataclass(frozen=True)
class Reconstruction:
    """The input again, [N, ...], from a narrower code; how far it is off tells anomalies.

    Targets are float32 [N, 1 + D]: whether a sample is an anomaly (1) or not (0), and its D values
    to reproduce, flattened. The loss is the mean squared error. Metrics: `auc`, the chance that an
    anomaly has a larger error than another sample (area under the receiver operating
    characteristic; Hanley and McNeil 1982); `mse` of the samples that are no anomaly.
    """

    name: ClassVar[str] = "reconstruction"
    metrics: ClassVar[tuple[str, ...]] = ("auc", "mse")
    running: ClassVar[str] = "squared_error"
    distribution: ClassVar[Distribution] = ""
    decides: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    def outputs(self, spec: DataSpec) -> int:
        return int(torch.Size(spec.input_shape).numel())

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return spec.input_shape

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        wanted = 1 + self.outputs(spec)
        if split.targets.dtype != torch.float32 or tuple(split.targets.shape[1:]) != (wanted,):
            raise UserError(
                f"{where}: targets must be float32 [samples, {wanted}] (is it an anomaly, then the "
                f"values), got {list(split.targets.shape)}"
            )
        marks = split.targets[:, 0]
        if bool(((marks != 0) & (marks != 1)).any()):
            raise UserError(f"{where}: the first column of the targets must be 0 or 1 (anomaly)")

    @staticmethod
    def targets(inputs: Tensor, anomalous: Tensor) -> Tensor:
        """The targets of float inputs [N, ...]; `anomalous` [N] is 1 for anomalies, else 0."""
        return torch.cat([anomalous.float().view(-1, 1), inputs.flatten(1)], 1)

    def errors(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of each sample, [N]."""
        return (answers.flatten(1) - targets[:, 1:]).square().mean(1)

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        refuse_smoothing(label_smoothing, self.name)
        each = self.errors(answers, targets)
        return each.mean() if reduction == "mean" else each.sum()

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return student, teacher, targets

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        each = self.errors(answers, targets)
        return each.sum(), each.new_tensor(len(each))

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        return (answers - given).square().flatten(1).mean(1).sum()

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        errors, anomalous = self.errors(answers.double(), targets), targets[:, 0] > 0.5
        if metric == "mse":
            return float(errors[~anomalous].mean())
        from torchmetrics.functional.classification import binary_auroc

        # by rank: torchmetrics would map scores above 1 through a sigmoid, which ties large ones
        ranks = torch.unique(errors, return_inverse=True)[1].double()
        return float(binary_auroc(ranks / ranks.max().clamp_min(1.0), anomalous.int()))

    def rows(self, answers: Tensor) -> Tensor:
        return answers.flatten(1)

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        if metric == "auc":
            return 0.5
        usual = targets[targets[:, 0] < 0.5, 1:].double()
        return float((usual - usual.mean(0)).square().mean())

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {
            "shape": ["batch", *spec.input_shape],
            "values": "the input again; the mean squared error tells anomalies",
        }

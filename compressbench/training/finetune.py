"""Continues the training of a model; masked weights stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.core.layers import output_rows, prunable_layers, weight_owners
from compressbench.core.types import QUANTIZED, TRAINED, Artifact, Context, Outcome
from compressbench.core.validation import check_not_negative
from compressbench.training.fits.schedule import BatchLoss, schedule_of
from compressbench.training.teaching import objective


@dataclass(frozen=True)
class Finetune(objective.TaughtFitOptions):
    """Continue training on the labels, or with a distillation `loss` and a teacher.

    For `label_smoothing` and `loss` see `TaughtFitOptions`, for the other options `Schedule`.

    `group_lasso` >= 0 adds group_lasso * sum over channels of sqrt(n) ||w||_2 to the loss, where
    w are the n weights of one output channel of a convolution or linear layer. The penalty drives
    whole channels towards zero, so that channel pruning can remove them afterwards (Yuan and Lin
    2006; for channels Wen et al. 2016, arXiv:1608.03665).
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset()
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    group_lasso: float = 0.0

    def __post_init__(self) -> None:
        objective.check_fit(self)
        check_not_negative("group_lasso", self.group_lasso)

    check_teachers = objective.check_teachers

    def passes(self, train_images: int) -> tuple[int, int]:
        return round(self.epochs * train_images), 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        lasso = partial(WithGroupLasso, factor=self.group_lasso) if self.group_lasso else None
        return objective.learn(
            inputs["model"],
            inputs,
            self.loss,
            self.label_smoothing,
            schedule_of(self),
            context,
            lasso,
        )


class WithGroupLasso(nn.Module):
    """A loss plus `factor` times the group lasso of the model (see `Finetune`)."""

    def __init__(self, loss: BatchLoss, factor: float) -> None:
        super().__init__()
        self.loss, self.factor = loss, factor
        self.terms: dict[str, Tensor] = {}

    def forward(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, logits = self.loss(model, inputs, targets, rows)
        lasso = self.factor * group_lasso(model)
        self.terms = {**getattr(self.loss, "terms", {"labels": value}), "group_lasso": lasso}
        return value + lasso, logits


def group_lasso(model: nn.Module) -> Tensor:
    """Sum over all output channels of sqrt(n) ||w||_2, w being the n weights of a channel."""
    layers = prunable_layers(model)
    terms = []
    for name in dict.fromkeys(weight_owners(model, layers).values()):
        rows = output_rows(layers[name], layers[name].get_parameter("weight")).flatten(0, 1)
        norms = (rows.square().sum(1) + 1e-12).sqrt()  # keeps the gradient at zero finite
        terms.append(rows.shape[1] ** 0.5 * norms.sum())
    return torch.stack(terms).sum()

"""Train on from where the model stands; masked weights stay zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.checks import check_share, is_number
from compressbench.core import TRAINED, Artifact, Context, Outcome, UserError
from compressbench.criteria.scores import is_transposed
from compressbench.stages.layers import prunable_layers
from compressbench.stages.schedule import BatchLoss, Optimizer, Schedule
from compressbench.stages.train import GRIDS, cross_entropy, descend


@dataclass(frozen=True)
class Finetune:
    """Cross-entropy training of a model that is trained already. Options: `Schedule`.

    `group_lasso` times the sum of sqrt(n) ||w||_2 over the output channels of convolutions and
    linear layers, of n weights w each, is added to the loss: it drives whole channels towards
    zero, which a channel pruning that follows can then remove (Yuan and Lin 2006; for channels Wen
    et al. 2016, arXiv:1608.03665).
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset()
    destroys: ClassVar[frozenset[str]] = GRIDS

    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0
    label_smoothing: float = 0.0
    group_lasso: float = 0.0

    def __post_init__(self) -> None:
        self.schedule()
        check_share("label_smoothing", self.label_smoothing)
        if not is_number(self.group_lasso) or not 0 <= self.group_lasso < math.inf:
            raise UserError(f"group_lasso must be a number of at least 0, got {self.group_lasso!r}")

    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch_size, self.optimizer, self.warmup)

    def passes(self, train_images: int) -> tuple[int, int]:
        return round(self.epochs * train_images), 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        loss = cross_entropy(self.label_smoothing)
        if self.group_lasso > 0:
            loss = with_group_lasso(loss, self.group_lasso)
        return descend(inputs["model"], loss, self.schedule(), context)


def with_group_lasso(loss: BatchLoss, factor: float) -> BatchLoss:
    """`loss` plus `factor` times the group lasso of the model, see `Finetune`."""

    def total(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        value, logits = loss(model, inputs, targets)
        return value + factor * group_lasso(model), logits

    return total


def group_lasso(model: nn.Module) -> Tensor:
    """Sum of sqrt(n) ||w||_2 over all output channels, of n weights w each."""
    unique = {id(m.weight): m for m in prunable_layers(model).values()}
    terms = []
    for layer in unique.values():
        weight = layer.get_parameter("weight")
        rows = (weight.transpose(0, 1) if is_transposed(layer) else weight).flatten(1)
        norms = (rows.square().sum(1) + 1e-12).sqrt()  # a gradient at zero, too
        terms.append(rows.shape[1] ** 0.5 * norms.sum())
    return torch.stack(terms).sum()

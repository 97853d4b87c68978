"""Combines two pruning criteria, such as one of weights and one of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import Context
from compressbench.pruning.criteria.scores import is_criterion, of_weights, over_mean, scores_of

Combination = Literal["product", "rank"]


@dataclass(frozen=True)
class Mixed:
    """Combines the scores of two criteria within each layer.

    `combine="product"` multiplies the two scores, each divided by its layer's mean.
    `combine="rank"` averages the two ranks within the layer, from 0 for the least important
    weight to 1 for the most important; equal scores share a rank.
    """

    comparable: ClassVar[bool] = False  # scores of different layers cannot be compared

    weights: Criterion | ModelCriterion
    activations: Criterion | ModelCriterion
    combine: Combination = "product"

    def __post_init__(self) -> None:
        if self.combine not in ("product", "rank"):
            raise UserError(f'combine must be "product" or "rank", got {self.combine!r}')
        for name in ("weights", "activations"):
            if not is_criterion(getattr(self, name)):
                raise UserError(f"{name} must be a criterion, got {getattr(self, name)!r}")

    @property
    def images(self) -> int:
        """Training images that both criteria use together."""
        both = (self.weights, self.activations)
        return sum(int(getattr(criterion, "images", 0)) for criterion in both)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        first, second = (
            scores_of(criterion, model, layers, context)
            for criterion in (self.weights, self.activations)
        )
        joined = {}
        for name, layer in layers.items():
            pair = [of_weights(layer, scores[name]) for scores in (first, second)]
            if self.combine == "product":
                joined[name] = over_mean(pair[0]) * over_mean(pair[1])
            else:
                joined[name] = (ranks(pair[0]) + ranks(pair[1])) / 2
        return joined


def ranks(scores: Tensor) -> Tensor:
    """Rank each score: the share of smaller scores plus half that of equal ones, in (0, 1)."""
    _, places, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - counts + 0.5 * counts
    ranked: Tensor = (middle / max(1, scores.numel()))[places].to(scores.dtype)
    return ranked

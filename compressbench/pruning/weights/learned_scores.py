"""Accumulates scores during training, and keeps masked weights so that they can be restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.protocols import LearntCriterion
from compressbench.core.types import Context


@dataclass(frozen=True)
class Given:
    """A criterion that returns scores computed earlier."""

    scores: Mapping[str, Tensor]

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        return {name: self.scores[name].cpu() for name in layers}


class LearntScores:
    """Scores of the layers `names` of a masked model, accumulated during training.

    Masked weights are zero in the model; `waiting` has their values from before they were masked,
    and zeros elsewhere.
    """

    def __init__(self, criterion: LearntCriterion, model: nn.Module, names: Sequence[str]) -> None:
        self.criterion, self.names = criterion, names
        weights = {name: model.get_parameter(f"{name}.weight").detach() for name in names}
        self.scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.waiting = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def add_(self, model: nn.Module, rate: float) -> None:
        """Update the scores from the gradients of `model`, then zero those of masked weights."""
        taken = []
        for name, whole in self.whole(model).items():
            layer = model.get_submodule(name)
            gradient = layer.get_parameter("weight").grad
            if gradient is not None:
                score = self.scores[name].to(whole.device)
                self.scores[name] = self.criterion.step(score, whole, gradient, rate)
                taken.append((gradient, layer.get_buffer("weight_mask")))
        # only now, because a tied weight has one gradient for all its layers
        for gradient, mask in taken:
            gradient.mul_(mask)

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of `model` with masked weights at their earlier values."""
        weights = {}
        for name in self.names:
            weight = model.get_parameter(f"{name}.weight").detach()
            weights[name] = weight + self.waiting[name].to(weight.device)
        return weights

    @torch.no_grad()
    def restore_(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        """Restore all masked weights of `model`; with new `masks`, keep the weights they mask."""
        for name, whole in self.whole(model).items():
            model.get_parameter(f"{name}.weight").copy_(whole)
            if masks is not None:
                self.waiting[name] = whole.masked_fill(masks[name].to(whole.device), 0.0)

    def state(self) -> dict[str, Any]:
        return {"scores": dict(self.scores), "waiting": dict(self.waiting)}

    def resume(self, state: dict[str, Any]) -> None:
        self.scores, self.waiting = state["scores"], state["waiting"]

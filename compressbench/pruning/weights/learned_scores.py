"""Scores that build up while a model is trained, and the weights that may come back by them."""

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
    """A criterion whose scores were found before."""

    scores: Mapping[str, Tensor]

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        return {name: self.scores[name].cpu() for name in layers}


class LearntScores:
    """The scores of the layers `names` of a masked model, by layer.

    A masked weight is zero in the model; what it was when it went stands in `waiting`, which is
    zero elsewhere.
    """

    def __init__(self, criterion: LearntCriterion, model: nn.Module, names: Sequence[str]) -> None:
        self.criterion, self.names = criterion, names
        weights = {name: model.get_parameter(f"{name}.weight").detach() for name in names}
        self.scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.waiting = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def add_(self, model: nn.Module, rate: float) -> None:
        """Take in the gradients of `model`, and leave none to weights that are masked."""
        taken = []
        for name, whole in self.whole(model).items():
            layer = model.get_submodule(name)
            gradient = layer.get_parameter("weight").grad
            if gradient is not None:
                score = self.scores[name].to(whole.device)
                self.scores[name] = self.criterion.step(score, whole, gradient, rate)
                taken.append((gradient, layer.get_buffer("weight_mask")))
        for (
            gradient,
            mask,
        ) in taken:  # afterwards: a tied weight has one gradient for all its layers
            gradient.mul_(mask)

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of `model` with those that wait in their places."""
        found = {}
        for name in self.names:
            weight = model.get_parameter(f"{name}.weight").detach()
            found[name] = weight + self.waiting[name].to(weight.device)
        return found

    @torch.no_grad()
    def restore_(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        """Put all weights back where they were; with new `masks`, what these take waits next."""
        for name, whole in self.whole(model).items():
            model.get_parameter(f"{name}.weight").copy_(whole)
            if masks is not None:
                self.waiting[name] = whole.masked_fill(masks[name].to(whole.device), 0.0)

    def state(self) -> dict[str, Any]:
        return {"scores": dict(self.scores), "waiting": dict(self.waiting)}

    def resume(self, state: dict[str, Any]) -> None:
        self.scores, self.waiting = state["scores"], state["waiting"]

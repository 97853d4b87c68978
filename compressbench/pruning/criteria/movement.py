"""Importance that is learnt while a model is trained: weights that move away from zero stay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Movement:
    """S, which starts at 0 and becomes S - r (dL/dw) w at every step, r the learning rate: above
    zero for weights that grew. For `prune_gradual` alone, which takes the gradient at the masked
    weight, as if there were no mask, and w as it was when it went: so a weight can come back.

    Sanh et al. 2020 (arXiv:2005.07683, section 4, hard movement pruning), with the masks of the
    stage's schedule, and r instead of a rate of its own.
    """

    def step(self, score: Tensor, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        return score - rate * gradient * weight

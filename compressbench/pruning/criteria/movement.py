"""Importance learned during training: high for weights that move away from zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Movement:
    """Accumulates S - r (dL/dw) w over the training steps, from S = 0; r is the learning rate.

    S is positive for weights that grew. Only for `prune_gradual`: for a masked weight, dL/dw is
    the gradient without the mask, and w its value when it was masked, so it can be restored.

    Sanh et al. 2020 (arXiv:2005.07683, section 4, hard movement pruning), with the sparsity
    schedule of the stage, and the model's learning rate instead of a separate one for scores.
    """

    def step(self, score: Tensor, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """The scores after a step with learning rate `rate`; all tensors have the same shape."""
        return score - rate * gradient * weight

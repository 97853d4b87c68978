"""Quantization-aware training with the straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, GridWeight, choose_scale, expand, round_to_grid
from compressbench.core.protocols import Observer
from compressbench.quantization.trained.protocols import (
    FixedSite,
    Rounding,
    limits_of,
    pass_through,
)


@dataclass(frozen=True)
class StraightThrough:
    """Treat rounding as the identity in the backward pass, and clipping as clipping.

    No quantizer parameters are learned. Scales of weights are computed from their values at every
    step, by the observer `ranges`; scales of activations stay as calibrated (Bengio et al. 2013,
    arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877).
    """

    ranges: Observer

    def __post_init__(self) -> None:
        if not callable(getattr(self.ranges, "range", None)):
            raise UserError(f"ranges must be an observer, got {self.ranges!r}")

    def weight(self, weight: Tensor, grid: Grid) -> StraightThroughWeight:
        return StraightThroughWeight(grid, self.ranges)

    def activation(
        self, scale: Tensor, zero_point: Tensor, bits: int, power_of_two: bool
    ) -> FixedSite:
        return FixedSite(scale, zero_point, bits)


class StraightThroughWeight(nn.Module):
    """Scales come from the current weight; the gradient passes where nothing is clipped."""

    def __init__(self, grid: Grid, ranges: Observer) -> None:
        super().__init__()
        self.grid, self.ranges = grid, ranges

    def grid_weight(self, weight: Tensor) -> GridWeight:
        scale, zero_point = choose_scale(weight, self.grid, self.ranges)
        return round_to_grid(weight, scale, self.grid, zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        def rounding(weight: Tensor, learned: None) -> Rounding:
            scale, zero_point = choose_scale(weight, self.grid, self.ranges)
            scale = expand(scale, weight)
            steps = torch.round(weight / scale)
            low, high = limits_of(weight, zero_point, self.grid)
            return Rounding(scale * steps.clamp(low, high), (steps >= low) & (steps <= high))

        return pass_through(weight, None, rounding)

"""Learned step size quantization (LSQ) of weights and activations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core.grid import Grid, GridWeight, expand, round_to_grid, rows, scale_of
from compressbench.quantization.trained.protocols import (
    Rounding,
    limits_of,
    pass_through,
    round_site,
    site_limits,
)


@dataclass(frozen=True)
class Lsq:
    """Train the step sizes s of v̂ = s clip(round(v / s), l, h).

    The gradient is

        dv̂/ds = round(v / s) - v / s if l < v / s < h, else l or h,

    times 1 / sqrt(N h) for N values per step (Esser et al. 2020, arXiv:1902.08153, eq. 3 and
    section 2.2). Steps of weights start at min(2 mean|w| / sqrt(h), the smallest step without
    clipping), with the mean over nonzero weights; steps of activations start as calibrated. Zero
    points are fixed. Power-of-two grids round s up, and pass the gradient through this rounding
    (Jain et al. 2020, arXiv:1903.08066).
    """

    def weight(self, weight: Tensor, grid: Grid) -> LsqWeight:
        return LsqWeight(*start(weight, grid), grid)

    def activation(
        self, scale: Tensor, zero_point: Tensor, bits: int, power_of_two: bool
    ) -> LsqSite:
        return LsqSite(scale, zero_point, bits, power_of_two)


def start(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """The initial steps and zero points of a weight, in the grid's `scale_shape`."""
    values = rows(weight, grid)
    widest, zero_point = scale_of(*values.aminmax(dim=1), grid)
    mean = values.abs().sum(1) / (values != 0).sum(1).clamp(min=1)
    step = torch.where(mean > 0, 2 * mean / math.sqrt(grid.high), widest)
    shape = grid.scale_shape(weight)
    step = torch.minimum(step, widest).reshape(shape)
    return step, None if zero_point is None else zero_point.reshape(shape)


def step_slope(
    ratio: Tensor, low: Tensor | float, high: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """For `ratio` = v / s: the clipped round(v / s), dv̂/ds of eq. 3, and where v is not clipped."""
    inside = (ratio > low) & (ratio < high)
    steps = torch.round(ratio).clamp(low, high)  # type: ignore[arg-type]
    return steps, steps - ratio * inside, inside


def positive(step: Tensor, power_of_two: bool = False) -> Tensor:
    """A positive scale for a learned step, which the optimizer may move across zero."""
    scale = step.abs().clamp(min=torch.finfo(torch.float32).tiny)
    if not power_of_two:
        return scale
    above = torch.exp2(torch.ceil(torch.log2(scale.detach())))
    return scale + (above - scale.detach())  # exact, since they differ by less than a factor of 2


class LsqWeight(nn.Module):
    """Trains `step` float32; `zero_point` uint8 (None: symmetric). Both have the `scale_shape`."""

    zero_point: Tensor | None

    def __init__(self, step: Tensor, zero_point: Tensor | None, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.step = nn.Parameter(step)
        self.register_buffer("zero_point", zero_point)

    def scale(self) -> Tensor:
        return positive(self.step, self.grid.power_of_two)

    def grid_weight(self, weight: Tensor) -> GridWeight:
        return round_to_grid(weight, self.scale().detach(), self.grid, self.zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        low, high = limits_of(weight, self.zero_point, self.grid)

        def rounding(weight: Tensor, scale: Tensor) -> Rounding:
            steps, slope, inside = step_slope(weight / scale, low, high)
            return Rounding(scale * steps, inside, slope)

        values = weight.numel() / self.step.numel()
        factor = 1 / math.sqrt(values * self.grid.high)
        return pass_through(weight, expand(self.scale(), weight), rounding, factor)


class LsqSite(nn.Module):
    """Trains `step` float32 []; `zero_point` uint8 [] is fixed."""

    zero_point: Tensor

    def __init__(
        self, scale: Tensor, zero_point: Tensor, bits: int, power_of_two: bool = False
    ) -> None:
        super().__init__()
        self.bits, self.power_of_two = bits, power_of_two
        self.low, self.high = site_limits(zero_point, bits)
        self.step = nn.Parameter(scale.clone())
        self.register_buffer("zero_point", zero_point.clone())

    def scale(self) -> Tensor:
        return positive(self.step, self.power_of_two)

    def forward(self, values: Tensor) -> Tensor:
        def rounding(values: Tensor, scale: Tensor) -> Rounding:
            _, slope, inside = step_slope(values / scale, self.low, self.high)
            return Rounding(round_site(values, scale, self.zero_point, self.bits), inside, slope)

        features = values.numel() / len(values)  # per sample: the loss is a mean over samples
        factor = 1 / math.sqrt(features * max(-self.low, self.high))
        result = pass_through(values.float(), self.scale(), rounding, factor)
        return result.to(values.dtype)

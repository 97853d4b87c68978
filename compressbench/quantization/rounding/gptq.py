"""GPTQ: rounds weights column by column, and compensates for errors in later columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import WorkingCopies
from compressbench.analysis.obs import columns, compensated, damped
from compressbench.core.errors import UserError
from compressbench.core.grid import (
    Grid,
    GridWeight,
    choose_scale,
    expand,
    round_to_grid,
    step_limits,
)
from compressbench.core.journal import Journal
from compressbench.core.layers import per_output
from compressbench.core.protocols import Observer
from compressbench.core.types import Context
from compressbench.core.validation import check_flag, check_integer, check_positive
from compressbench.quantization.rounding.layer_by_layer import begun, rounded_in_order

Order = Literal["activation", "natural"]
ORDERS = ("activation", "natural")


@dataclass(frozen=True)
class Gptq:
    """Greedy argmin over W' on the grid of |W x - W' x'|^2, rounding W column by column.

    After column j is rounded with error e, the columns k > j move by -e U_jk / U_jj, where
    U^T U = (sum of x' x'^T + d I)^-1 and d is `damping` times the mean of the diagonal: this
    compensates best for e. x' are the inputs of the layer in the model whose earlier layers are
    already quantized. Zero weights stay zero, and their moves are compensated like rounding
    errors. Output channels with a larger error than with rounding to nearest are rounded to
    nearest. Needs 16 K^2 bytes for K weights per output, for any number of images.

    Frantar et al. 2022 (arXiv:2210.17323); Frantar and Alistarh 2022 (arXiv:2208.11580).

    Args:
        ranges: Observer that determines the scales.
        images: Number of training images, at least 2.
        damping: Above 0; raise it if the Hessian of a layer is not positive definite.
        order: "activation" starts with the inputs of the largest mean square, "natural" keeps the
            order of the inputs.
        drift: Use inputs x of the float model, so that a layer also compensates for errors of
            earlier layers (Li et al. 2025, arXiv:2504.02692); otherwise x = x'.
        sweeps: Number of times that all weights are then rounded again, column by column, with
            all other weights fixed.
    """

    ranges: Observer
    images: int = 256
    damping: float = 0.01
    order: Order = "activation"
    drift: bool = True
    sweeps: int = 0

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)
        check_positive("damping", self.damping)
        if self.order not in ORDERS:
            raise UserError(f"order must be {' or '.join(ORDERS)}, got {self.order!r}")
        check_flag("drift", self.drift)
        check_integer("sweeps", self.sweeps, 0)

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        journal, models = begun(self, model, grids, context), WorkingCopies.of(model, context)

        def rounded(moments: Moments, grid: Grid, kept: Journal) -> GridWeight:
            return self.round(moments, grid)

        return rounded_in_order(models, grids, rounded, context, self.images, journal, self.drift)

    def round(self, moments: Moments, grid: Grid) -> GridWeight:
        """Quantize one layer, minimizing the output error given by `moments`."""
        weight = moments.weight
        scale, zero_point = choose_scale(weight, grid, self.ranges)
        nearest = round_to_grid(weight, scale, grid, zero_point)
        hessian = damped(moments.second.double(), self.damping)
        target = moments.rows(weight).double()
        target += torch.linalg.solve(hessian, moments.shift.double().mT).mT
        order = self._order(hessian)
        back = order.argsort(dim=1)
        rounding = Rounding.of(moments, nearest, grid).permuted(order)
        target, hessian = columns(target, order), columns(columns(hessian, order).mT, order)
        steps = torch.round(compensated(target, hessian, rounding.update_column) / rounding.scale)
        for _ in range(self.sweeps):
            sweep_(steps, target, hessian, rounding)
        rounded = columns(steps, back).reshape(weight.shape).to(torch.int16)
        result = replace(nearest, steps=rounded)
        better = moments.error(result.weight) < moments.error(nearest.weight)
        kept = per_output(better, weight)
        return replace(nearest, steps=torch.where(kept, rounded, nearest.steps))

    def _order(self, hessian: Tensor) -> Tensor:
        """The order [G, K] in which the columns of each group are rounded."""
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        if self.order == "activation":
            return diagonal.argsort(dim=1, descending=True, stable=True)
        return torch.arange(diagonal.shape[1], device=diagonal.device).expand(diagonal.shape)


@dataclass(frozen=True)
class Rounding:
    """The grid of every weight of a layer, and which weights stay zero; all [G, O / G, K]."""

    scale: Tensor
    low: Tensor
    high: Tensor
    zero: Tensor

    @classmethod
    def of(cls, moments: Moments, nearest: GridWeight, grid: Grid) -> Rounding:
        weight = moments.weight

        def full(values: Tensor) -> Tensor:
            values = expand(values, weight) if values.ndim else values.to(weight.device)
            return moments.rows(values.expand(weight.shape))

        low, high = step_limits(grid, nearest.zero_point)
        return cls(full(nearest.scale), full(low), full(high), moments.rows(weight) == 0)

    def permuted(self, order: Tensor) -> Rounding:
        return Rounding(*(columns(v, order) for v in (self.scale, self.low, self.high, self.zero)))

    def __call__(self, values: Tensor, column: int) -> Tensor:
        """The steps, float32 [G, O / G], nearest to `values` of one column."""
        steps = torch.round(values.float() / self.scale[..., column])
        steps = steps.clamp(self.low[..., column], self.high[..., column])
        return steps.masked_fill(self.zero[..., column], 0.0)

    def update_column(self, values: Tensor, column: int) -> Tensor:
        """The values on the grid, float64, nearest to `values` of one column."""
        return self(values, column).double() * self.scale[..., column]


def sweep_(steps: Tensor, target: Tensor, hessian: Tensor, rounding: Rounding) -> None:
    """Set each column in turn to its best steps with all others fixed; never raises the error."""
    slope = (steps * rounding.scale - target) @ hessian
    for column in range(steps.shape[2]):
        scale = rounding.scale[..., column]
        now = steps[..., column] * scale
        best = now - slope[..., column] / hessian[:, None, column, column]
        rounded = rounding(best, column).double()
        slope += (rounded * scale - now)[..., None] * hessian[:, None, column]
        steps[..., column] = rounded

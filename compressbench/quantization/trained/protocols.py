"""Rounding that lets a gradient through, and the protocol of the methods that train on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compressbench.core.grid import Grid, GridWeight, expand, step_limits


class TrainedWeight(Protocol):
    """The grid of one layer's weight during a fit; an nn.Module."""

    def __call__(self, weight: Tensor) -> Tensor:
        """`weight` on its grid, with a gradient for it and for what is learned."""
        ...

    def grid_weight(self, weight: Tensor) -> GridWeight:
        """The same numbers as steps and scales."""
        ...


class TrainedSite(Protocol):
    """The grid of one activation during a fit; an nn.Module. Its zero point does not change."""

    def __call__(self, values: Tensor) -> Tensor:
        """`values` as `activations.fake_quantize` rounds them, with a gradient."""
        ...

    def scale(self) -> Tensor:
        """float32 []."""
        ...


class WeightTraining(Protocol):
    """How weights learn in spite of rounding; zero stays exactly zero.

    The parameters of the module are trained along, without weight decay unless it has a `decay`.
    """

    def weight(self, weight: Tensor, grid: Grid) -> TrainedWeight:
        """The module for a weight [O, I, ..], whose present values say where to start."""
        ...


class ActivationTraining(Protocol):
    """How a model learns in spite of rounded activations; parameters as in `WeightTraining`."""

    def activation(
        self, scale: Tensor, zero_point: Tensor, bits: int, power_of_two: bool
    ) -> TrainedSite:
        """The module for a site that was calibrated to `scale` float32 [], `zero_point` uint8 []
        and codes from 0 to 2**bits - 1. If `power_of_two`, its scale is one and must stay one.
        """
        ...


@dataclass(frozen=True)
class Rounding:
    """What one rounding gives, each in the shape of the values v: `rounded` v̂, `inside` bool,
    where the gradient of v passes, and `slope`, dv̂/dp for a learned p (None: nothing is learned).
    """

    rounded: Tensor
    inside: Tensor
    slope: Tensor | None = None


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        learned: Tensor | None,
        rounding: Callable[[Tensor, Tensor | None], Rounding],
        factor: float,
    ) -> Tensor:
        result = rounding(values, learned)
        ctx.save_for_backward(result.inside, result.slope)
        ctx.shape, ctx.factor = None if learned is None else learned.shape, factor
        return result.rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inside, slope = ctx.saved_tensors
        of_learned = None
        if ctx.needs_input_grad[1] and slope is not None:
            of_learned = (gradients[0] * slope).sum_to_size(ctx.shape) * ctx.factor
        return gradients[0] * inside, of_learned, None, None


def pass_through(
    values: Tensor,
    learned: Tensor | None,
    rounding: Callable[[Tensor, Any], Rounding],
    factor: float = 1.0,
) -> Tensor:
    """`rounding(values, learned)` going forward. Going back, values get the gradient where they
    are `inside`, and `learned`, which broadcasts over them, `factor` times the sum of its `slope`.

    That is the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432).
    """
    result: Tensor = _PassThrough.apply(values, learned, rounding, factor)  # type: ignore[no-untyped-call]
    return result


def limits_of(weight: Tensor, zero_point: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """The smallest and the largest step of a grid, so that they broadcast over `weight`."""
    low, high = (limit.to(weight.device) for limit in step_limits(grid, zero_point))
    return (low, high) if zero_point is None else (expand(low, weight), expand(high, weight))


def round_site(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """What `activations.fake_quantize` gives for the same arguments."""
    return torch.fake_quantize_per_tensor_affine(
        values, scale, zero_point.to(torch.int32), 0, 2**bits - 1
    )


class FixedSite(nn.Module):
    """A site whose calibrated grid stays: the gradient passes where no value is clipped."""

    step: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = site_limits(zero_point, bits)
        self.register_buffer("step", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())

    def scale(self) -> Tensor:
        return self.step

    def forward(self, values: Tensor) -> Tensor:
        def rounding(values: Tensor, learned: None) -> Rounding:
            steps = torch.round(values / self.step)
            rounded = round_site(values, self.step, self.zero_point, self.bits)
            return Rounding(rounded, (steps >= self.low) & (steps <= self.high))

        return pass_through(values.float(), None, rounding).to(values.dtype)


def site_limits(zero_point: Tensor, bits: int) -> tuple[int, int]:
    """The smallest and the largest step of a site's grid."""
    return -int(zero_point), 2**bits - 1 - int(zero_point)

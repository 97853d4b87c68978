"""Protocols of trained quantizers, and rounding with a straight-through gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compressbench.core.grid import Grid, GridWeight, expand, step_limits


class TrainedWeight(Protocol):
    """The quantizer of one layer's weight during training; an nn.Module."""

    def __call__(self, weight: Tensor) -> Tensor:
        """Round `weight` to its grid, differentiable in the weight and the learned parameters."""
        ...

    def grid_weight(self, weight: Tensor) -> GridWeight:
        """The same rounded weight as steps and scales."""
        ...


class TrainedSite(Protocol):
    """The quantizer of one activation during training; an nn.Module. Its zero point is fixed."""

    def __call__(self, values: Tensor) -> Tensor:
        """Round `values` as at inference (`fake_quantize`), with a gradient."""
        ...

    def scale(self) -> Tensor:
        """The scale, float32 []."""
        ...


class WeightTraining(Protocol):
    """Method of training rounded weights; zero weights must stay exactly zero.

    Parameters of the returned module are trained, without weight decay unless it has a `decay`.
    """

    def weight(self, weight: Tensor, grid: Grid) -> TrainedWeight:
        """The module for a weight [O, I, ..], initialized from its current values."""
        ...


class ActivationTraining(Protocol):
    """Method of training with rounded activations; parameters as in `WeightTraining`."""

    def activation(
        self, scale: Tensor, zero_point: Tensor, bits: int, power_of_two: bool
    ) -> TrainedSite:
        """The module for an activation calibrated to `scale` float32 [] and `zero_point` uint8 [].

        Codes range from 0 to 2**bits - 1. If `power_of_two`, the scale must stay a power of two.
        """
        ...


@dataclass(frozen=True)
class Rounding:
    """Result of a rounding; all tensors have the shape of the values v.

    `rounded` are the values v̂, `inside` (bool) is where the gradient of v passes, and `slope` is
    dv̂/dp for a learned p, or None if nothing is learned.
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
    """Compute `rounding(values, learned)` with the straight-through estimator as gradient.

    In the backward pass, values get the gradient where they are `inside`; `learned`, which
    broadcasts over the values, gets `factor` times the sum of the gradient times `slope` (Bengio
    et al. 2013, arXiv:1308.3432).
    """
    result: Tensor = _PassThrough.apply(values, learned, rounding, factor)  # type: ignore[no-untyped-call]
    return result


def limits_of(weight: Tensor, zero_point: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """The smallest and the largest step of a grid, in shapes that broadcast over `weight`."""
    low, high = (limit.to(weight.device) for limit in step_limits(grid, zero_point))
    return (low, high) if zero_point is None else (expand(low, weight), expand(high, weight))


def round_site(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round activations exactly as `fake_quantize` does for the same arguments."""
    return torch.fake_quantize_per_tensor_affine(
        values, scale, zero_point.to(torch.int32), 0, 2**bits - 1
    )


class FixedSite(nn.Module):
    """An activation with a fixed, calibrated grid; the gradient passes where nothing is clipped."""

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
    """The smallest and the largest step of an activation's grid."""
    return -int(zero_point), 2**bits - 1 - int(zero_point)

"""Integer grids of weights, and the protocol of methods that quantize weights to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.protocols import Observer
from compressbench.core.types import Context
from compressbench.core.validation import check_flag, check_integer

Granularity = Literal["tensor", "channel", "group"]
GRANULARITIES = ("tensor", "channel", "group")


@dataclass(frozen=True)
class Grid:
    """The values that a quantized weight may have: scale * step, with integer steps.

    Args:
        bits: width of a step, in [2, 8].
        granularity: the weights that share a scale: the whole "tensor", an output "channel"
            (axis 0), or a "group" of input channels (axis 1) of one output channel, with all
            kernel positions.
        group_size: input channels per group; only for granularity "group".
        symmetric: steps in [-n, n], n = 2**(bits - 1) - 1; otherwise [-z, 2**bits - 1 - z] with a
            zero point z per scale. Zero is always exact.
        narrow: False extends a symmetric grid to [-n - 1, n].
        power_of_two: round scales up to powers of two (Jain et al. 2020, arXiv:1903.08066).
    """

    bits: int
    granularity: Granularity = "channel"
    group_size: int | None = None
    symmetric: bool = True
    narrow: bool = True
    power_of_two: bool = False

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 2, 8)
        if self.granularity not in GRANULARITIES:
            allowed = ", ".join(GRANULARITIES[:-1]) + f" or {GRANULARITIES[-1]}"
            raise UserError(f"granularity must be {allowed}, got {self.granularity!r}")
        if self.granularity == "group":
            check_integer("group_size", self.group_size, 1)
        elif self.group_size is not None:
            raise UserError(
                f"group_size={self.group_size!r} needs granularity group, got {self.granularity}"
            )
        for name in ("symmetric", "narrow", "power_of_two"):
            check_flag(name, getattr(self, name))

    @property
    def low(self) -> int:
        """The smallest step of a symmetric grid."""
        return -self.high - (0 if self.narrow else 1)

    @property
    def high(self) -> int:
        """The largest step of a symmetric grid."""
        return (1 << (self.bits - 1)) - 1

    @property
    def levels(self) -> int:
        """The largest code of an asymmetric grid, whose smallest is 0."""
        return (1 << self.bits) - 1

    def scale_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Shape of the scale of a weight [O, I, ..]: [1, 1, ..], [O, 1, ..] or
        [O, I / group_size, 1, ..].

        Raises UserError if the group size does not divide I.
        """
        ones = (1,) * (weight.ndim - 2)
        if self.granularity == "tensor":
            return (1, 1, *ones)
        if self.group_size is None:
            return (len(weight), 1, *ones)
        if weight.shape[1] % self.group_size:
            raise UserError(
                f"group_size={self.group_size} does not divide the {weight.shape[1]} input channels"
            )
        return (len(weight), weight.shape[1] // self.group_size, *ones)


@dataclass(frozen=True)
class GridWeight:
    """A weight [O, I, ..] on its grid.

    `steps` int16 has the shape of the weight; `scale` float32 and `zero_point` uint8 (None:
    symmetric) have the grid's `scale_shape`.
    """

    scale: Tensor
    steps: Tensor
    zero_point: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The quantized weight, float32: `scale * steps`."""
        return expand(self.scale, self.steps) * self.steps.to(self.scale.dtype)


class WeightQuantizer(Protocol):
    """Quantizes weights to integer grids: chooses the scales and rounds."""

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        """The quantized weight of every layer in `grids`; zero weights stay zero.

        `grids` has no embeddings; those are rounded to nearest, with the method's observer
        `ranges` if it has one. `model` is in eval mode on the CPU and must not be changed; a
        method that needs data runs a copy of it on images of `context.data`.
        """
        ...


def expand(values: Tensor, weight: Tensor) -> Tensor:
    """Expand `values` in a `scale_shape` until they broadcast over `weight` [O, I, ..]."""
    if values.shape[1] in (1, weight.shape[1]):
        return values
    return values.repeat_interleave(weight.shape[1] // values.shape[1], dim=1)


def rows(weight: Tensor, grid: Grid) -> Tensor:
    """The weights in rows, float32 [R, N]: one row per scale."""
    shape = grid.scale_shape(weight)
    return weight.detach().float().reshape(shape[0] * shape[1], -1)


def choose_scale(weight: Tensor, grid: Grid, observer: Observer) -> tuple[Tensor, Tensor | None]:
    """Scale float32 and zero point uint8 (None: symmetric) in `scale_shape`, from the ranges that
    `observer` chooses.
    """
    low, high = row_ranges(rows(weight, grid), grid, observer)
    scale, zero_point = scale_of(low, high, grid)
    shape = grid.scale_shape(weight)
    return scale.reshape(shape), None if zero_point is None else zero_point.reshape(shape)


def row_ranges(values: Tensor, grid: Grid, observer: Observer) -> tuple[Tensor, Tensor]:
    """The range (low, high), float32 [R] each, of every row of `values` [R, N].

    Uses the observer's optional `row_ranges(values, bits, symmetric)`, which is faster.
    """
    together = getattr(observer, "row_ranges", None)
    if together is not None:
        low, high = together(values, grid.bits, grid.symmetric)
        return low, high
    ranges = [
        observer.range(observer.update(observer.start(), row), grid.bits, grid.symmetric)
        for row in values
    ]
    return tuple(torch.tensor(ranges).T)


def scale_of(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """The scale and zero point of the grid that spans [low, high], widened to include zero.

    A range of zero or subnormal width gets scale 1.
    """
    below, above = (-low).clamp(min=0), high.clamp(min=0)
    if grid.symmetric:
        scale = torch.maximum(below / -grid.low, above / grid.high)
    else:
        scale = (below + above) / grid.levels
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(scale < tiny, torch.ones_like(scale), scale)
    if grid.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    if grid.symmetric:
        return scale, None
    return scale, torch.round(below / scale).clamp(max=grid.levels).to(torch.uint8)


def step_limits(grid: Grid, zero_point: Tensor | None) -> tuple[Tensor, Tensor]:
    """The smallest and largest step, float32: scalars, or in the shape of `zero_point`."""
    if zero_point is None:
        return torch.tensor(float(grid.low)), torch.tensor(float(grid.high))
    offset = zero_point.float()
    return -offset, grid.levels - offset


def round_to_grid(
    weight: Tensor, scale: Tensor, grid: Grid, zero_point: Tensor | None = None
) -> GridWeight:
    """Round to nearest, ties to even, and clip, like ONNX QuantizeLinear."""
    steps = torch.round(weight.detach().float() / expand(scale, weight))
    low, high = step_limits(grid, zero_point)
    if zero_point is not None:
        low, high = expand(low, weight), expand(high, weight)
    return GridWeight(scale, steps.clamp(low, high).to(torch.int16), zero_point)


def on_cpu(result: GridWeight) -> GridWeight:
    zero_point = None if result.zero_point is None else result.zero_point.cpu()
    return GridWeight(result.scale.cpu(), result.steps.cpu(), zero_point)

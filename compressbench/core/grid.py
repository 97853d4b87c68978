"""Integer grids of weights, and the protocol of the methods that put weights on them."""

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
    """The numbers that a weight may have: `scale * step`, `step` an integer of `bits` in [2, 8].

    `granularity` says what shares a scale: the whole `tensor`, an output `channel` (axis 0), or a
    `group` of `group_size` input channels (axis 1) of one output channel, all kernel positions.
    `symmetric` steps are [-n, n], n = 2**(bits - 1) - 1, or [-n - 1, n] unless `narrow`.
    Otherwise they are [-z, 2**bits - 1 - z], z a zero point for each scale: zero is always exact.
    `power_of_two` scales are powers of two, rounded up (Jain et al. 2020, arXiv:1903.08066).
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
                f"group_size={self.group_size!r} is for granularity group, not {self.granularity}"
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
        """[1, 1, ..], [O, 1, ..] or [O, I / group_size, 1, ..] for a weight [O, I, ..].

        Raises UserError where the group size does not divide I.
        """
        ones = (1,) * (weight.ndim - 2)
        if self.granularity == "tensor":
            return (1, 1, *ones)
        if self.group_size is None:
            return (len(weight), 1, *ones)
        if weight.shape[1] % self.group_size:
            raise UserError(
                f"group_size={self.group_size} does not divide its {weight.shape[1]} input channels"
            )
        return (len(weight), weight.shape[1] // self.group_size, *ones)


@dataclass(frozen=True)
class GridWeight:
    """A weight [O, I, ..] on its grid: `scale` float32 and `zero_point` uint8 (None: symmetric) in
    the grid's `scale_shape`, `steps` int16 in the shape of the weight.
    """

    scale: Tensor
    steps: Tensor
    zero_point: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """float32 `scale * steps`."""
        return expand(self.scale, self.steps) * self.steps.to(self.scale.dtype)


class WeightQuantizer(Protocol):
    """Puts weights on integer grids: chooses the scales and rounds."""

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        """The quantized weight of every layer named in `grids`; zero weights stay zero.

        Embeddings are not among them: they are rounded to nearest, with the method's observer
        `ranges` where it has one.

        `model` is in eval mode on the CPU and is not changed. A method that looks at data runs
        (a copy of) it on images of `context.data`; one that does not reads the weights alone.
        """
        ...


def expand(values: Tensor, weight: Tensor) -> Tensor:
    """Numbers in a `scale_shape`, so that they broadcast over `weight` [O, I, ..]."""
    if values.shape[1] in (1, weight.shape[1]):
        return values
    return values.repeat_interleave(weight.shape[1] // values.shape[1], dim=1)


def rows(weight: Tensor, grid: Grid) -> Tensor:
    """float32 [R, N]: one row for each scale, with the N weights that share it."""
    shape = grid.scale_shape(weight)
    return weight.detach().float().reshape(shape[0] * shape[1], -1)


def choose_scale(weight: Tensor, grid: Grid, observer: Observer) -> tuple[Tensor, Tensor | None]:
    """Scale float32 and zero point uint8 (None: symmetric), in `scale_shape`, for the ranges that
    `observer` finds for each row.
    """
    low, high = row_ranges(rows(weight, grid), grid, observer)
    scale, zero_point = scale_of(low, high, grid)
    shape = grid.scale_shape(weight)
    return scale.reshape(shape), None if zero_point is None else zero_point.reshape(shape)


def row_ranges(values: Tensor, grid: Grid, observer: Observer) -> tuple[Tensor, Tensor]:
    """(low, high) float32 [R] of `values` [R, N], row by row.

    An observer may have a faster way for all rows together, `row_ranges(values, bits, symmetric)`.
    """
    together = getattr(observer, "row_ranges", None)
    if together is not None:
        low, high = together(values, grid.bits, grid.symmetric)
        return low, high
    found = [
        observer.range(observer.update(observer.start(), row), grid.bits, grid.symmetric)
        for row in values
    ]
    return tuple(torch.tensor(found).T)


def scale_of(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """The scale and zero point whose grid spans [low, high], widened to hold zero.

    A range of zero width (or of subnormal numbers, which count as zero) gets scale 1.
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
    """The smallest and the largest step, float32, as numbers or in the shape of `zero_point`."""
    if zero_point is None:
        return torch.tensor(float(grid.low)), torch.tensor(float(grid.high))
    offset = zero_point.float()
    return -offset, grid.levels - offset


def round_to_grid(
    weight: Tensor, scale: Tensor, grid: Grid, zero_point: Tensor | None = None
) -> GridWeight:
    """clip(round(weight / scale)) with ties to even, as ONNX QuantizeLinear rounds."""
    steps = torch.round(weight.detach().float() / expand(scale, weight))
    low, high = step_limits(grid, zero_point)
    if zero_point is not None:
        low, high = expand(low, weight), expand(high, weight)
    return GridWeight(scale, steps.clamp(low, high).to(torch.int16), zero_point)


def on_cpu(result: GridWeight) -> GridWeight:
    zero_point = None if result.zero_point is None else result.zero_point.cpu()
    return GridWeight(result.scale.cpu(), result.steps.cpu(), zero_point)

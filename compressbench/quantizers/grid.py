"""Symmetric integer grids of weights, and the protocol of the methods that choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from compressbench.checks import check_integer
from compressbench.core import Context, UserError

Granularity = Literal["tensor", "channel"]
GRANULARITIES = ("tensor", "channel")


@dataclass(frozen=True)
class Grid:
    """`bits` in [2, 8]; one scale per output `channel` (axis 0) or one for the whole `tensor`."""

    bits: int
    granularity: Granularity

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 2, 8)
        if self.granularity not in GRANULARITIES:
            allowed = " or ".join(GRANULARITIES)
            raise UserError(f"granularity must be {allowed}, got {self.granularity!r}")

    @property
    def largest(self) -> int:
        """The largest integer; the smallest is its negative (narrow range)."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class GridWeight:
    """`scale` float32 [O, 1, ..] or [1, 1, ..] and `integers` int8 [O, I, ..] of one weight."""

    scale: Tensor
    integers: Tensor

    @property
    def weight(self) -> Tensor:
        """float32 `scale * integers`."""
        return self.scale * self.integers.to(self.scale.dtype)


class WeightQuantizer(Protocol):
    """Puts weights on integer grids: chooses the scales and rounds."""

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        """The quantized weight of every layer named in `grids`; zero weights stay zero.

        `model` is in eval mode on the CPU and is not changed. A method that looks at data runs
        (a copy of) it on images of `context.data`; one that does not reads the weights alone.
        """
        ...


def max_scale(weight: Tensor, grid: Grid) -> Tensor:
    """The scale max |weight| / (2**(bits - 1) - 1) per channel or tensor, float32.

    A channel of zeros (or of subnormal numbers, which count as zero) gets scale 1.
    """
    size = weight.detach().float().abs()
    axes = tuple(range(0 if grid.granularity == "tensor" else 1, weight.ndim))
    scale = size.amax(dim=axes, keepdim=True) / grid.largest
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def round_to_grid(weight: Tensor, scale: Tensor, grid: Grid) -> GridWeight:
    """clip(round(weight / scale)) with ties to even, as ONNX QuantizeLinear rounds."""
    steps = torch.round(weight.detach().float() / scale)
    return GridWeight(scale, steps.clamp(-grid.largest, grid.largest).to(torch.int8))

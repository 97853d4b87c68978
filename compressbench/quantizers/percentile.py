"""The range of an activation that holds a given share of the values seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.collectives import max_over_ranks, sum_over_ranks
from compressbench.core import UserError

SIDE = 4096  # bins on each side of zero
_SMALLEST_EXPONENT = -100  # of the limit: values below 2**-100 share one bin


@dataclass(frozen=True)
class Histogram:
    """`counts` int64 [2 * SIDE] of equal bins over [-2**exponent, 2**exponent), and the extremes.

    Since limits are powers of two, a wider histogram is made by adding up whole bins: nothing is
    interpolated, and the result depends neither on the order of batches nor on their ranks.
    """

    counts: Tensor
    exponent: int
    bounds: Tensor  # (-min, max)

    def widened(self, exponent: int) -> Histogram:
        if exponent == self.exponent:
            return self
        bins = torch.arange(-SIDE, SIDE, device=self.counts.device)
        merged = (bins >> min(exponent - self.exponent, 62)) + SIDE
        counts = torch.zeros_like(self.counts).index_add_(0, merged, self.counts)
        return Histogram(counts, exponent, self.bounds)


@dataclass(frozen=True)
class Percentile:
    """The range that holds `percentile` percent of all calibration values, of all ranks.

    Of signed values, half of the rest is cut on either side; of non-negative ones (after a ReLU)
    all of it at the top. `percentile` in (0, 100]; each end is exact to one bin, 2 * max|x| / 4096
    at most, and 100 is the exact minimum and maximum.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        value = self.percentile
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 100:
            raise UserError(f"percentile must be a number in (0, 100], got {value!r}")

    def start(self) -> Histogram:
        counts = torch.zeros(2 * SIDE, dtype=torch.int64)
        return Histogram(counts, _SMALLEST_EXPONENT, torch.full((2,), -math.inf))

    def update(self, statistic: Histogram, values: Tensor) -> Histogram:
        flat = values.detach().float().flatten()
        low, high = flat.aminmax()
        bounds = torch.maximum(statistic.bounds.to(flat.device), torch.stack((-low, high)))
        largest = max(-low.item(), high.item())
        if not math.isfinite(largest):
            return Histogram(statistic.counts.to(flat.device), statistic.exponent, bounds)
        exponent = statistic.exponent
        if largest > 0:
            exponent = max(exponent, math.frexp(largest)[1])  # largest < 2**exponent
        wide = statistic.widened(exponent)
        bins = torch.floor(flat * (SIDE / 2.0**exponent)).long() + SIDE
        counts = torch.bincount(bins.clamp_(0, 2 * SIDE - 1), minlength=2 * SIDE)
        return Histogram(wide.counts.to(flat.device) + counts, exponent, bounds)

    def range(self, statistic: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
        bounds = max_over_ranks(
            statistic.bounds.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        )
        widest = max_over_ranks(torch.tensor(statistic.exponent, device=bounds.device))
        exponent = int(widest.item())
        counts = sum_over_ranks(statistic.widened(exponent).counts)
        negated_low, high = bounds.tolist()
        total = int(counts.sum())
        if total == 0 or not (math.isfinite(negated_low) and math.isfinite(high)):
            return -negated_low, high
        width = 2.0**exponent / SIDE
        if negated_low <= 0:
            return -negated_low, min(_top(counts, self.percentile, width), high)
        share = 50 + self.percentile / 2
        low = max(-_top(counts.flip(0), share, width), -negated_low)
        return low, min(_top(counts, share, width), high)


def _top(counts: Tensor, share: float, width: float) -> float:
    """The upper edge of the first bin up to which `share` percent of the values lie."""
    wanted = max(1, math.ceil(int(counts.sum()) * share / 100))
    reached = torch.cumsum(counts, 0) >= wanted
    return (int(reached.int().argmax()) + 1 - SIDE) * width

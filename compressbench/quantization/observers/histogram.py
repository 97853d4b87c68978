"""Histogram of signed values that grows with its values and can be summed over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.distributed import max_over_ranks, sum_over_ranks

SIDE = 4096  # number of bins on each side of zero
_SMALLEST_EXPONENT = -100  # smallest limit 2**-100: smaller values share one bin


@dataclass(frozen=True)
class Histogram:
    """Counts of equal bins over [-2**exponent, 2**exponent), int64 [2 * SIDE], and the extremes.

    Since limits are powers of two, a histogram is widened by merging whole bins. Nothing is
    interpolated, so the result does not depend on the order of batches or their ranks.
    """

    counts: Tensor
    exponent: int
    bounds: Tensor  # (-min, max)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent / SIDE

    @property
    def ends(self) -> tuple[float, float]:
        """(min, max) of all values; NaN counts as infinity."""
        bounds = self.bounds.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        negated_low, high = bounds.tolist()
        return -negated_low, high

    @property
    def usable(self) -> bool:
        """Whether there are values, all of them finite."""
        return all(math.isfinite(end) for end in self.ends) and bool(self.counts.any())

    def centres(self) -> Tensor:
        """The center of each bin, float64 [2 * SIDE]."""
        return (torch.arange(-SIDE, SIDE, device=self.counts.device).double() + 0.5) * self.width

    def widened(self, exponent: int) -> Histogram:
        """The same counts over the limit 2**exponent, which must not be smaller than now."""
        if exponent == self.exponent:
            return self
        bins = torch.arange(-SIDE, SIDE, device=self.counts.device)
        merged = (bins >> min(exponent - self.exponent, 62)) + SIDE
        counts = torch.zeros_like(self.counts).index_add_(0, merged, self.counts)
        return Histogram(counts, exponent, self.bounds)


def empty() -> Histogram:
    """A histogram without values."""
    counts = torch.zeros(2 * SIDE, dtype=torch.int64)
    return Histogram(counts, _SMALLEST_EXPONENT, torch.full((2,), -math.inf))


def add(histogram: Histogram, values: Tensor) -> Histogram:
    """Add `values` of any shape and float dtype; if not all are finite, only `bounds` change."""
    flat = values.detach().float().flatten()
    low, high = flat.aminmax()
    bounds = torch.maximum(histogram.bounds.to(flat.device), torch.stack((-low, high)))
    largest = max(-low.item(), high.item())
    if not math.isfinite(largest):
        return Histogram(histogram.counts.to(flat.device), histogram.exponent, bounds)
    exponent = histogram.exponent
    if largest > 0:
        exponent = max(exponent, math.frexp(largest)[1])  # largest < 2**exponent
    wide = histogram.widened(exponent)
    bins = torch.floor(flat * (SIDE / 2.0**exponent)).long() + SIDE
    counts = torch.bincount(bins.clamp_(0, 2 * SIDE - 1), minlength=2 * SIDE)
    return Histogram(wide.counts.to(flat.device) + counts, exponent, bounds)


def over_ranks(histogram: Histogram) -> Histogram:
    """The histogram of the values of all ranks."""
    bounds = max_over_ranks(
        histogram.bounds.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    )
    widest = max_over_ranks(torch.tensor(histogram.exponent, device=bounds.device))
    exponent = int(widest.item())
    return Histogram(sum_over_ranks(histogram.widened(exponent).counts), exponent, bounds)

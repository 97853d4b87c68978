"""Range that contains a given share of the values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.quantization.observers.histogram import SIDE, Histogram, add, empty, over_ranks


@dataclass(frozen=True)
class Percentile:
    """The range that contains `percentile` percent of the calibration values of all ranks.

    `percentile` in (0, 100]. Signed values are clipped equally often on both sides, non-negative
    values (after a ReLU) only at the top. The ends are exact for weights; for activations they
    are accurate to one bin of width at most 2 * max|x| / 4096, and exact for 100.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        value = self.percentile
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 100:
            raise UserError(f"percentile must be a number in (0, 100], got {value!r}")

    def start(self) -> Histogram:
        return empty()

    def update(self, statistic: Histogram, values: Tensor) -> Histogram:
        return add(statistic, values)

    def range(self, statistic: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
        seen = over_ranks(statistic)
        smallest, largest = seen.ends
        if not seen.usable:
            return smallest, largest
        if smallest >= 0:
            return smallest, min(_top(seen.counts, self.percentile, seen.width), largest)
        share = 50 + self.percentile / 2
        low = max(-_top(seen.counts.flip(0), share, seen.width), smallest)
        return low, min(_top(seen.counts, share, seen.width), largest)

    def row_ranges(self, values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        ordered = values.sort(dim=1).values
        count = values.shape[1]
        two_sided = _place(count, 50 + self.percentile / 2)
        signed = ordered[:, 0] < 0
        low = torch.where(signed, ordered[:, count - two_sided], ordered[:, 0])
        one_sided = ordered[:, _place(count, self.percentile) - 1]
        return low, torch.where(signed, ordered[:, two_sided - 1], one_sided)


def _place(count: int, share: float) -> int:
    """Number of values that are `share` percent of `count`, rounded up, at least one."""
    return max(1, math.ceil(count * share / 100))


def _top(counts: Tensor, share: float, width: float) -> float:
    """Upper edge of the bin at which `share` percent of the values are reached."""
    reached = torch.cumsum(counts, 0) >= _place(int(counts.sum()), share)
    return (int(reached.int().argmax()) + 1 - SIDE) * width

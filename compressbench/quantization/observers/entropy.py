"""The range that loses the least information, by Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.quantization.observers.histogram import SIDE, Histogram, add, empty, over_ranks

_BINS = SIDE // 2  # of |x|, over a limit of at most 2 * max|x|
_EMPTY = 1e-4  # counts of a level without any, so that a cut before a gap has a divergence, too


@dataclass(frozen=True)
class Entropy:
    """[-T, T], cut to [min, max], with the T of the least KL(P || Q) over a histogram of |x|.

    The histogram has 1,024 to 2,048 bins up to max|x|, of the values of all ranks; T is an edge of
    one of them (`threshold`). Values of one sign get 2**bits levels. Those of signed values are
    folded together, half of the levels for each sign, also where the grid is asymmetric: the
    smaller side is then cut at -T like the larger one. The first bin counts as much as the second:
    exact zeros, half of all values after a ReLU, are on every grid.

    Migacz 2017, "8-bit Inference with TensorRT" (GPU Technology Conference).
    """

    def start(self) -> Histogram:
        return empty()

    def update(self, statistic: Histogram, values: Tensor) -> Histogram:
        return add(statistic, values)

    def range(self, statistic: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
        return _range(over_ranks(statistic), bits)

    def row_ranges(self, values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        found = [_range(add(empty(), row), bits) for row in values]
        low, high = torch.tensor(found, device=values.device).T
        return low, high


def _range(seen: Histogram, bits: int) -> tuple[float, float]:
    smallest, largest = seen.ends
    if not seen.usable or smallest == largest == 0:
        return smallest, largest
    below, above = seen.counts[:SIDE].flip(0), seen.counts[SIDE:]
    counts = (below + above).reshape(_BINS, -1).sum(dim=1)
    counts = counts[: int(counts.nonzero().max()) + 1]
    counts[0] = counts[min(1, len(counts) - 1)]
    levels = 1 << (bits - 1 if smallest < 0 < largest else bits)
    limit = threshold(counts, levels) * seen.width * SIDE / _BINS
    return max(smallest, min(-limit, largest)), min(largest, max(limit, smallest))


def threshold(counts: Tensor, levels: int) -> int:
    """How many of the bins `counts` [N] to keep: i in [levels, N] with the least KL(P || Q).

    P is the first i bins, the last of them with all counts above it; Q the same without those,
    bin j merged into level floor(j * levels / i), each level spread evenly over its bins that P
    fills; both divided by their sums. A level that is empty in Q only, before a gap, counts as
    1e-4 of a value. Half of all counts are kept at least: cutting values far from zero down to
    one bin would lose nothing by this measure. N where there are no more bins than levels.
    """
    if len(counts) <= levels:
        return len(counts)
    exact = counts.double()
    half = int((_running(exact) >= exact.sum() / 2).int().argmax())
    kept = torch.arange(max(levels, half), len(counts) + 1, device=counts.device)
    total, last = exact.sum(), exact[kept - 1]
    outside = total - _running(exact)[kept]
    starts = torch.arange(levels + 1, device=counts.device)
    edges = (starts * kept[:, None] + levels - 1) // levels  # the first bin of each level
    merged = _running(exact)[edges].diff(dim=1)
    filled = _running((exact > 0).double())[edges].diff(dim=1)
    filled[:, -1] += ((last == 0) & (outside > 0)).double()
    spread = merged.clamp(min=_EMPTY) / filled.clamp(min=1)
    merged[:, -1] += outside
    own = _running(torch.xlogy(exact, exact))[kept]
    own += torch.xlogy(last + outside, last + outside) - torch.xlogy(last, last)
    cross = torch.xlogy(merged, spread).sum(dim=1)
    divergence = (own - cross) / total - torch.log(total) + torch.log(total - outside)
    return int(kept[divergence.argmin()])


def _running(values: Tensor) -> Tensor:
    """[N + 1]: the sum of the first n values."""
    return torch.cat((values.new_zeros(1), values.cumsum(0)))

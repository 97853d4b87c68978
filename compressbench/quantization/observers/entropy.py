"""Range with the smallest Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.quantization.observers.histogram import SIDE, Histogram, add, empty, over_ranks

_BINS = SIDE // 2  # bins of |x|, up to a limit of at most 2 * max|x|
_EMPTY = 1e-4  # count given to empty levels, to keep the divergence finite


@dataclass(frozen=True)
class Entropy:
    """[-T, T], clipped to [min, max], with T minimizing KL(P || Q) over a histogram of |x|.

    P is the histogram clipped at T, and Q its quantized version (see `threshold`). The histogram
    has 1,024 to 2,048 bins up to max|x| over the values of all ranks, and T is an edge of a bin.
    Values of one sign get 2**bits levels. Values of both signs are folded onto |x| with half of
    the levels, even for asymmetric grids, so both sides are clipped at the same T. The count of
    the first bin is replaced by that of the second: exact zeros, often half of the values after a
    ReLU, are exact on every grid.

    Migacz 2017, "8-bit Inference with TensorRT" (GPU Technology Conference).
    """

    def start(self) -> Histogram:
        return empty()

    def update(self, statistic: Histogram, values: Tensor) -> Histogram:
        return add(statistic, values)

    def range(self, statistic: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
        return _range(over_ranks(statistic), bits)

    def row_ranges(self, values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        ranges = [_range(add(empty(), row), bits) for row in values]
        low, high = torch.tensor(ranges, device=values.device).T
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
    """Number of bins of `counts` [N] to keep: the i in [levels, N] with the smallest KL(P || Q).

    P has the first i bins, with all counts above added to the last of them. Q has the first i
    bins without these counts; bin j is merged into level floor(j * levels / i), and the counts of
    a level are spread evenly over its bins that are nonempty in P. Both are divided by their
    sums. A level that is empty in Q but not in P counts as 1e-4. At least half of all counts are
    kept, since clipping values far from zero to a single bin would have no divergence. Returns N
    if there are no more bins than levels.
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
    entropy = _running(torch.xlogy(exact, exact))[kept]
    entropy += torch.xlogy(last + outside, last + outside) - torch.xlogy(last, last)
    cross = torch.xlogy(merged, spread).sum(dim=1)
    divergence = (entropy - cross) / total - torch.log(total) + torch.log(total - outside)
    return int(kept[divergence.argmin()])


def _running(values: Tensor) -> Tensor:
    """Cumulative sums [N + 1], starting with 0."""
    return torch.cat((values.new_zeros(1), values.cumsum(0)))

"""Fits a codebook of shared values to the weights of a layer, by k-means."""

from __future__ import annotations

import torch
from torch import Tensor

LLOYD_STEPS = 300
CELLS = 1024  # initialization is exact up to this number of distinct weights
_BINS = 4096


def fit_codebook(weight: Tensor, bits: int) -> Tensor:
    """Find 2**bits values for the weights of a tensor by k-means; ascending, float32.

    The method is that of Han et al. 2016 (arXiv:1510.00149, section 3). Optimal clusters in one
    dimension are intervals, which dynamic programming finds (Wang and Song 2011,
    doi:10.32614/RJ-2011-015), here over at most `CELLS` cells of neighboring weights; Lloyd's
    algorithm then refines the borders. If there are zero weights, one value is exactly zero. If
    there are fewer distinct weights than values, the last value is repeated.
    """
    values = weight.detach().double().flatten().sort().values
    return _lloyd(values, _best_intervals(values, 1 << bits)).float()


def codes_of(weight: Tensor, book: Tensor) -> Tensor:
    """Index int64, in the ascending `book`, of the value nearest to each weight."""
    return torch.bucketize(weight.detach().double(), (book[1:].double() + book[:-1].double()) / 2)


def _best_intervals(values: Tensor, count: int) -> Tensor:
    """Means of the `count` intervals of ascending `values` with the least squared error."""
    ends = _cell_ends(values)
    first = torch.cat([ends.new_zeros(1), ends[:-1]])
    sums, squares = (_partial(values**power) for power in (1, 2))
    total = sums[ends][None, :] - sums[first][:, None]  # by first and last cell of an interval
    size = (ends[None, :] - first[:, None]).clamp(min=1)
    cost = squares[ends][None, :] - squares[first][:, None] - total**2 / size
    cost = cost.masked_fill(first[:, None] >= ends[None, :], torch.inf)
    best, starts = cost[0], []
    for _ in range(min(count, len(ends)) - 1):
        best, start = (
            best.roll(1)[:, None].index_fill(0, ends.new_zeros(1), torch.inf) + cost
        ).min(0)
        starts.append(start)
    means, last = [], len(ends) - 1
    for start in [*reversed(starts), torch.zeros_like(ends)]:
        begin = int(start[last])
        means.append(total[begin, last] / size[begin, last])
        last = begin - 1
    means += means[:1] * (count - len(means))
    return torch.stack(means).flip(0)


def _cell_ends(values: Tensor) -> Tensor:
    """End positions of cells of equal weights, or of similar weights, in ascending `values`.

    Cells of similar weights have a density proportional to the cube root of the weights' density,
    which is optimal for large numbers of cells (Panter and Dite 1951).
    """
    counts = torch.unique_consecutive(values, return_counts=True)[1]
    ends: Tensor = counts.cumsum(0)
    if len(ends) <= CELLS:
        return ends
    low, high = float(values[0]), float(values[-1])
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    mass = torch.bincount(torch.bucketize(values, edges[1:-1]), minlength=_BINS) ** (1 / 3)
    steps = torch.arange(1, CELLS, dtype=torch.float64) / CELLS * mass.sum()
    borders = edges[1 + torch.searchsorted(mass.double().cumsum(0), steps)]
    ends = torch.searchsorted(values, torch.cat([borders, values[-1:]]), right=True)
    taken: Tensor = torch.unique_consecutive(ends[ends > 0])
    return taken


def _partial(values: Tensor) -> Tensor:
    """Cumulative sums [n + 1], starting with 0."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _lloyd(values: Tensor, book: Tensor) -> Tensor:
    """Move each value of `book` to the mean of its nearest weights, until none changes."""
    sums = _partial(values)
    fixed = torch.zeros(len(book), dtype=torch.bool)
    if bool((values == 0).any()):
        fixed[book.abs().argmin()] = True
        book = torch.where(fixed, 0.0, book)
    for _ in range(LLOYD_STEPS):
        ends = torch.searchsorted(values, (book[1:] + book[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(values)])])
        counts = ends.diff()
        means = sums[ends].diff() / counts.clamp(min=1)
        moved = torch.where((counts == 0) | fixed, book, means)
        if torch.equal(moved, book):
            break
        book = moved
    return book.sort().values

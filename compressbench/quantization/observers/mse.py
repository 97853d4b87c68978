"""Range with the smallest mean squared quantization error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.validation import check_integer
from compressbench.quantization.observers.histogram import Histogram, add, empty, over_ranks

Ranges = tuple[Tensor, Tensor]  # low [R] <= 0 <= high [R], one range for each row
Error = Callable[[Tensor, Tensor], Tensor]  # (low, high) -> the squared error of each row [R]

_FINER = 10  # factor by which a refinement narrows the spacing of ranges around the best
_REFINEMENTS = 2
_SWEEPS = 2  # alternations between the low and the high end


@dataclass(frozen=True)
class Mse:
    """argmin over [low, high] of sum (Q(x) - x)**2, where Q rounds to the grid of the range.

    Tries `candidates` ranges (2 or more) from [min, max] down to zero, and refines the best. A
    symmetric range shrinks at both ends together, an asymmetric one also at each end alone.
    Errors of weights are exact; those of symmetric grids are computed for steps [-n, n] with
    n = 2**(bits - 1) - 1. Errors of activations are computed from a histogram of the values of
    all ranks, with bins of width at most 2 * max|x| / 4096.

    Nagel et al. 2021 (arXiv:2106.08295, section 3.1); Choukroun et al. 2019 (arXiv:1902.06822).
    """

    candidates: int = 100

    def __post_init__(self) -> None:
        check_integer("candidates", self.candidates, 2)

    def start(self) -> Histogram:
        return empty()

    def update(self, statistic: Histogram, values: Tensor) -> Histogram:
        return add(statistic, values)

    def range(self, statistic: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
        seen = over_ranks(statistic)
        smallest, largest = seen.ends
        if not seen.usable:
            return smallest, largest
        filled = seen.counts > 0
        values = seen.centres()[filled].clamp(smallest, largest)[None]
        counts = seen.counts[filled].double()
        low, high = _search(
            lambda low, high: _code_error(values, low, high, bits, counts),
            torch.tensor([smallest], dtype=torch.float64, device=values.device),
            torch.tensor([largest], dtype=torch.float64, device=values.device),
            symmetric,
            self.candidates,
        )
        return low.item(), high.item()

    def row_ranges(self, values: Tensor, bits: int, symmetric: bool) -> Ranges:
        low, high = values.aminmax(dim=1)
        error: Error = (
            (lambda _, high: _step_error(values, high, bits))
            if symmetric
            else (lambda low, high: _code_error(values, low, high, bits))
        )
        return _search(error, low, high, symmetric, self.candidates)


def _search(
    error: Error, smallest: Tensor, largest: Tensor, symmetric: bool, candidates: int
) -> Ranges:
    """The best range of each row; if asymmetric, an end on the far side of zero is not moved."""
    low, high = smallest.clamp(max=0), largest.clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    ratios = [n / candidates for n in range(candidates, 0, -1)]
    best = _best(error, (low, high), ((low * r, high * r) for r in ratios))
    if not symmetric:
        for _ in range(_SWEEPS):
            best = _best(error, best, [(low * r, best[1]) for r in ratios])
            best = _best(error, best, [(best[0], high * r) for r in ratios])
    for power in range(1, _REFINEMENTS + 1):
        best = _refined(error, best, (low, high), 1 / candidates / _FINER**power, symmetric)
    if symmetric:
        return best
    return torch.where(smallest > 0, smallest, best[0]), torch.where(largest < 0, largest, best[1])


def _refined(error: Error, best: Ranges, widest: Ranges, step: float, symmetric: bool) -> Ranges:
    """Refine `best` by moving its ends by multiples of `step` times the widest range."""
    moves = [step * n for n in range(1 - _FINER, _FINER) if n]
    ends = [(True, True)] if symmetric else [(True, True), (True, False), (False, True)]
    for lower, upper in ends:
        trials = [
            (
                (best[0] + move * lower * widest[0]).clamp(widest[0], widest[0] * 0),
                (best[1] + move * upper * widest[1]).clamp(widest[1] * 0, widest[1]),
            )
            for move in moves
        ]
        best = _best(error, best, trials)
    return best


def _best(error: Error, known: Ranges, trials: Iterable[Ranges]) -> Ranges:
    """For each row, the range with the smallest error among `known` and `trials`."""
    low, high = known
    least = error(low, high)
    for trial_low, trial_high in trials:
        current = error(trial_low, trial_high)
        better = current < least
        least = torch.where(better, current, least)
        low, high = torch.where(better, trial_low, low), torch.where(better, trial_high, high)
    return low, high


def _step_error(values: Tensor, high: Tensor, bits: int) -> Tensor:
    """Squared errors [R] of `values` [R, N] on symmetric grids with steps of high / n."""
    largest = (1 << (bits - 1)) - 1
    scale = _scale(high / largest)
    steps = torch.round(values / scale).clamp_(-largest, largest)
    return (steps * scale - values).square_().sum(dim=1)


def _code_error(
    values: Tensor, low: Tensor, high: Tensor, bits: int, counts: Tensor | None = None
) -> Tensor:
    """Squared errors [R] of `values` [R, N] on asymmetric grids, each value `counts` times."""
    levels = (1 << bits) - 1
    scale = _scale((high - low) / levels)
    zero_point = torch.round(-low[:, None] / scale).clamp_(0, levels)
    steps = torch.round(values / scale).clamp(-zero_point, levels - zero_point)
    squares = (steps * scale - values).square_()
    return (squares if counts is None else squares * counts).sum(dim=1)


def _scale(scale: Tensor) -> Tensor:
    """Scales [R, 1], with 1 in place of zero, as for rows of zeros."""
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(scale < tiny, torch.ones_like(scale), scale)[:, None]

"""Finds activations whose range says nothing about most of their values.

An attention mask of -1e9, added to scores between -5 and 5, makes a grid whose step is larger than
all scores together. Such activations stay in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.activation_quantizers import ActivationQuantizers, SiteQuantizer
from compressbench.core.activation_sites import TracedSite
from compressbench.core.distributed import sum_over_ranks

DOMINATES = 4.0  # a sum of this many times the magnitude of what was summed wastes two bits
_LOST = 0.1  # share of the variance, as in a signal-to-noise ratio of 10 dB
_NEAR_ZERO = 1.5  # steps of the grid: values that round to -1, 0 or 1 step


@dataclass(frozen=True)
class Extremes:
    """What a site was seen to hold: the largest finite magnitude, and whether it was infinite."""

    magnitude: float
    infinite: bool


def dominated(sites: Sequence[TracedSite], seen: Sequence[Extremes]) -> dict[int, str]:
    """Numbers of the sites that infinities or constants dominate, and why."""
    reasons = {n: "it holds infinities" for n, extremes in enumerate(seen) if extremes.infinite}
    for number, site in enumerate(sites):
        given = _given(number, sites, seen, reasons)
        if number in reasons or not site.shifted or not given:
            continue
        if seen[number].magnitude >= DOMINATES * given:
            reasons[number] = (
                f"a constant makes its magnitude {seen[number].magnitude:.3g}, that of what is "
                f"added to it is {given:.3g}"
            )
    return reasons


def suspects(
    sites: Sequence[TracedSite], seen: Sequence[Extremes], known: Mapping[int, str], bits: int
) -> list[int]:
    """Numbers of other sites with values 2**bits times as large as any that they come from."""
    doubtful = dict(known)
    for number in range(len(sites)):
        given = _given(number, sites, seen, doubtful)
        if number not in doubtful and given and seen[number].magnitude >= 2**bits * given:
            doubtful[number] = ""
    return [number for number in doubtful if number not in known]


def _given(
    number: int, sites: Sequence[TracedSite], seen: Sequence[Extremes], passed: Mapping[int, str]
) -> float:
    """The largest magnitude at the sites before a site, looking through those in `passed`."""
    before = sites[number].before
    return max(
        (_given(n, sites, seen, passed) if n in passed else seen[n].magnitude for n in before),
        default=0.0,
    )


def isolated(
    numbers: Sequence[int],
    quantizers: ActivationQuantizers,
    seen: Sequence[Extremes],
    run: Callable[[], object],
    device: torch.device,
) -> dict[int, str]:
    """Those of `numbers` whose values are either near an extreme or lost in one step, and why.

    `run` passes the calibration images through the model.
    """
    if not numbers:
        return {}
    sums = {n: torch.zeros(5, dtype=torch.float64, device=device) for n in numbers}

    def observe(number: int, values: Tensor) -> None:
        if number in sums:
            grid = quantizers[number]
            assert isinstance(grid, SiteQuantizer)
            sums[number] += _sums(values, grid, seen[number].magnitude)

    quantizers.observe = observe
    try:
        run()
    finally:
        quantizers.observe = None
    lost = [n for n in numbers if _is_lost(*sum_over_ranks(sums[n]).tolist())]
    return {
        n: f"beside values of {seen[n].magnitude:.3g}, all others fall into one step of its grid"
        for n in lost
    }


def _sums(values: Tensor, grid: SiteQuantizer, largest: float) -> Tensor:
    """Values between the steps around zero and the extremes; and of the values around zero their
    number, sum, sum of squares, and sum of squared rounding errors.
    """
    magnitudes = values.detach().abs()
    near = _NEAR_ZERO * float(grid.scale)
    between = ((magnitudes > near) & (magnitudes < largest / 2)).sum()
    small = values[magnitudes <= near]
    error = (grid(small) - small).double()
    small = small.double()
    moments = [small.sum(), small.square().sum(), error.square().sum()]
    return torch.stack([between.double(), torch.full_like(moments[0], small.numel()), *moments])


def _is_lost(between: float, count: float, total: float, squares: float, errors: float) -> bool:
    if between or not count:
        return False
    variance = squares / count - (total / count) ** 2
    return variance > 0 and not math.isclose(errors, 0.0) and errors / count >= _LOST * variance

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
from compressbench.quantization.grids.site_values import Sums

DOMINATES = 4.0  # a sum of this many times the magnitude of what was summed wastes two bits
_LOST = 0.1  # share of the variance, as in a signal-to-noise ratio of 10 dB
_NEAR_ZERO = 1.5  # steps of the grid: values that round to -1, 0 or 1 step


# the smallest and the largest magnitude at a site, or at those before it if it is looked through
_Span = tuple[float, float]


@dataclass(frozen=True)
class Extremes:
    """What a site was seen to hold: the largest finite magnitude, and whether it was infinite."""

    magnitude: float
    infinite: bool


def dominated(sites: Sequence[TracedSite], seen: Sequence[Extremes]) -> dict[int, str]:
    """Numbers of the sites that infinities or constants dominate, and why."""
    reasons: dict[int, str] = {}
    spans: list[_Span] = []
    for number, (site, extremes) in enumerate(zip(sites, seen, strict=True)):
        _, given = span = _before(site, spans)
        if extremes.infinite:
            reasons[number] = "it holds infinities"
        elif site.constant and given and extremes.magnitude >= DOMINATES * given:
            reasons[number] = (
                f"a constant makes its magnitude {extremes.magnitude:.3g}, what else is in it "
                f"has {given:.3g}"
            )
        spans.append(span if number in reasons else (extremes.magnitude, extremes.magnitude))
    return reasons


def suspects(
    sites: Sequence[TracedSite], seen: Sequence[Extremes], known: Mapping[int, str], bits: int
) -> list[int]:
    """Numbers of other sites with values 2**bits times as large as any that they come from.

    A sum is one already if that is true of one of what it adds.
    """
    found: list[int] = []
    spans: list[_Span] = []
    for number, (site, extremes) in enumerate(zip(sites, seen, strict=True)):
        least, most = span = _before(site, spans)
        given = least if site.adds else most
        doubtful = bool(given) and extremes.magnitude >= 2**bits * given
        if doubtful and number not in known:
            found.append(number)
        looked_through = doubtful or number in known
        spans.append(span if looked_through else (extremes.magnitude, extremes.magnitude))
    return found


def _before(site: TracedSite, spans: Sequence[_Span]) -> _Span:
    """The smallest and the largest magnitude of what a site comes from, 0 if that is unknown."""
    known = [spans[number] for number in site.before if spans[number][1] > 0]
    if not known:
        return 0.0, 0.0
    return min(least for least, _ in known), max(most for _, most in known)


def isolated(
    numbers: Sequence[int],
    quantizers: ActivationQuantizers,
    seen: Sequence[Extremes],
    run: Callable[[Sums], object],
    device: torch.device,
) -> dict[int, str]:
    """Those of `numbers` whose values are either near an extreme or lost in one step, and why.

    `run` passes the calibration images through the model, which changes the sums given to it.
    """
    if not numbers:
        return {}
    sums = {n: torch.zeros(5, dtype=torch.float64, device=device) for n in numbers}

    def observe(number: int, values: Tensor) -> None:
        if number in sums:
            grid = quantizers[number]
            assert isinstance(grid, SiteQuantizer)
            new = _sums(values, grid, seen[number].magnitude)
            sums[number] = sums[number].to(new.device) + new

    quantizers.observe = observe
    try:
        run(Sums(sums))
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

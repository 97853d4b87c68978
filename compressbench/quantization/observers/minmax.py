"""Range from the smallest to the largest value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.distributed import max_over_ranks


@dataclass(frozen=True)
class MinMax:
    """[min, max] over the calibration values of all ranks; NaN counts as infinity."""

    def start(self) -> Tensor:
        """Initial statistic (-min, max), of which both are maxima."""
        return torch.full((2,), -math.inf)

    def update(self, statistic: Tensor, values: Tensor) -> Tensor:
        low, high = values.detach().float().aminmax()
        return torch.maximum(statistic.to(low.device), torch.stack((-low, high)))

    def range(self, statistic: Tensor, bits: int, symmetric: bool) -> tuple[float, float]:
        bounds = statistic.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        negated_low, high = max_over_ranks(bounds).tolist()
        return -negated_low, high

    def row_ranges(self, values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        low, high = values.aminmax(dim=1)
        return low, high

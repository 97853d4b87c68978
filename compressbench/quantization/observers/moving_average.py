"""Range from moving averages of the extremes of each batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressbench.core.distributed import mean_over_ranks
from compressbench.core.errors import UserError
from compressbench.core.validation import is_number


@dataclass(frozen=True)
class MovingAverage:
    """Moving averages of the batch minimum and maximum, with weight `momentum` for each batch.

    Each end e becomes (1 - momentum) * e + momentum * (the batch's end), starting with those of
    the first batch; `momentum` in (0, 1] is that of BatchNorm. Outliers count less than with
    `MinMax`. The result depends on the order of the batches, and is averaged over ranks. For
    weights it is the same as `MinMax`.

    Jacob et al. 2018 (arXiv:1712.05877, section 3.1).
    """

    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not is_number(self.momentum) or not 0 < self.momentum <= 1:
            raise UserError(f"momentum must be a number in (0, 1], got {self.momentum!r}")

    def start(self) -> Tensor:
        """Initial statistic (low, high) without values."""
        return torch.tensor([math.inf, -math.inf])

    def update(self, statistic: Tensor, values: Tensor) -> Tensor:
        batch = torch.stack(values.detach().float().aminmax())
        known = statistic.to(batch.device)
        if torch.equal(known, self.start().to(batch.device)):
            return batch
        return known + self.momentum * (batch - known)

    def range(self, statistic: Tensor, bits: int, symmetric: bool) -> tuple[float, float]:
        low, high = mean_over_ranks(statistic).tolist()
        return low, high

    def row_ranges(self, values: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        low, high = values.aminmax(dim=1)
        return low, high

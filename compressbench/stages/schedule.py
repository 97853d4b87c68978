"""How long and how fast a fit goes; quick to import, unlike the fit itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core import UserError

Optimizer = Callable[..., torch.optim.Optimizer]
BatchLoss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> (loss, logits)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `epochs` may be a fraction; `batch_size` images make a step, shared
    by the ranks; the learning rate follows a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)
    after a linear warm-up of `warmup` of the steps.
    """

    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, (int, float)):
            raise UserError(f"epochs must be a number above 0, got {self.epochs!r}")
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise UserError(f"epochs must be a number above 0, got {self.epochs}")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise UserError(f"batch_size must be an integer of at least 2, got {self.batch_size!r}")
        if self.batch_size < 2:
            raise UserError(f"batch_size must be at least 2, got {self.batch_size}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup must be in [0, 1), got {self.warmup}")
        try:
            self.optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {error}") from None

    def share(self, ranks: int) -> int:
        """Images of one step on one of `ranks` ranks."""
        if self.batch_size < 2 * ranks:
            raise UserError(
                f"batch_size={self.batch_size} leaves {ranks} processes less than 2 each"
            )
        return self.batch_size // ranks

    def factor(self, step: int, steps: int) -> float:
        """Learning rate over its peak at `step` of `steps`."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

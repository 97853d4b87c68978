"""Schedule of a fit: duration, batch size and learning rate.

Kept apart from the fit because Lightning takes seconds to import.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compressbench.config.option_types import mistyped
from compressbench.core.errors import UserError
from compressbench.core.validation import (
    check_integer,
    check_not_negative,
    check_positive,
    check_share,
    is_number,
)

MOST_EPOCHS = 1e6

Optimizer = Callable[..., torch.optim.Optimizer]
# (model, inputs, targets, row numbers in the training split) -> (loss, logits)
BatchLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class FitCallback(Protocol):
    """Callback of a fit; its state is saved in the fit's checkpoint."""

    def before_step(self, model: nn.Module, rate: float) -> None:
        """Called with gradients reduced over ranks; `rate` is the learning rate of the step."""
        ...

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after `step` of `steps`, with the updated parameters; may change masks."""
        ...

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called after `epoch`, counted from 1."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state to save: tensors and plain values."""
        ...

    def resume(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned before a restart."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of every stage that trains; see `Schedule` for their meaning."""

    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule(FitOptions):
    """Duration and learning rate of a fit: linear warm-up, then cosine decay to 0.

    The cosine is that of Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts. Raises
    UserError for values out of range.

    Args:
        epochs: passes over the training split, above 0; may be a fraction.
        batch_size: images per step, divided among the ranks; at least 2 per rank.
        optimizer: called with the parameters; its learning rate is the peak.
        warmup: share of the steps with rising learning rate, in [0, 1).
    """

    def __post_init__(self) -> None:
        check_positive("epochs", self.epochs, MOST_EPOCHS)
        check_integer("batch_size", self.batch_size, 2)
        check_share("warmup", self.warmup)
        _check_optimizer(self.optimizer)
        try:
            self.optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {error}") from None

    def share(self, ranks: int) -> int:
        """Images per step on each of `ranks` ranks."""
        if self.batch_size < 2 * ranks:
            raise UserError(
                f"batch_size={self.batch_size} is too small: each of {ranks} processes needs 2"
            )
        return self.batch_size // ranks

    def steps(self, images: int, ranks: int, cap: int | None) -> tuple[int, int]:
        """Steps (per epoch, in total) of each rank; `cap` limits the steps of an epoch."""
        per_epoch = max(1, images // ranks // self.share(ranks))
        per_epoch = per_epoch if cap is None else min(per_epoch, cap)
        return per_epoch, max(1, round(self.epochs * per_epoch))

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at `step` of `steps`, as a fraction of the peak."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _check_optimizer(optimizer: Optimizer) -> None:
    """Raise UserError for options of a wrong type or size, which torch takes or explains badly."""
    if isinstance(optimizer, functools.partial):
        for problem in mistyped(optimizer.func, optimizer.keywords):
            raise UserError(f"optimizer.{problem}")
        for name, value in optimizer.keywords.items():
            if is_number(value):
                check_not_negative(f"optimizer.{name}", value)


def schedule_of(options: FitOptions) -> Schedule:
    """The schedule given by a stage's options; raises UserError for values out of range."""
    return Schedule(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        warmup=options.warmup,
    )

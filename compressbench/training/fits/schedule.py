"""How long and how fast a fit goes; quick to import, unlike the fit itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer, check_positive, check_share

Optimizer = Callable[..., torch.optim.Optimizer]
# (model, inputs, targets, their rows in the training split) -> (loss, logits)
BatchLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class FitCallback(Protocol):
    """Looks after a model while it is fitted; what it knows is saved with the fit."""

    def before_step(self, model: nn.Module, rate: float) -> None:
        """The gradients are there, of all ranks; `rate` is the learning rate of this step."""
        ...

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """`step` of `steps` is done; masks may change, parameters are those that will be kept."""
        ...

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """`epoch`, counted from 1, is done."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        ...

    def resume(self, state: dict[str, Any]) -> None:
        """Take up a state after a restart."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options that every stage with a fit takes: fields alone, which `Schedule` explains."""

    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule(FitOptions):
    """How long and how fast. `epochs` may be a fraction; `batch_size` images make a step, shared
    by the ranks; the learning rate follows a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)
    after a linear warm-up of `warmup` of the steps. Raises UserError for values out of range.
    """

    def __post_init__(self) -> None:
        check_positive("epochs", self.epochs)
        check_integer("batch_size", self.batch_size, 2)
        check_share("warmup", self.warmup)
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

    def steps(self, images: int, ranks: int, cap: int | None) -> tuple[int, int]:
        """(of an epoch, in all), on each of `ranks` ranks; an epoch has at most `cap`."""
        per_epoch = max(1, images // ranks // self.share(ranks))
        per_epoch = per_epoch if cap is None else min(per_epoch, cap)
        return per_epoch, max(1, round(self.epochs * per_epoch))

    def factor(self, step: int, steps: int) -> float:
        """Learning rate over its peak at `step` of `steps`."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def schedule_of(options: FitOptions) -> Schedule:
    """The schedule of a stage with these options; UserError for values out of range."""
    return Schedule(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        warmup=options.warmup,
    )

"""What tasks share whose answers are numbers, not scores."""

from __future__ import annotations

import torch
from torch import Tensor

from compressbench.core.errors import UserError
from compressbench.core.task import Reduction


def squared_error(answers: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    """Mean squared error over the values of a sample, as mean or sum over the samples."""
    each = (answers - targets).square().flatten(1).mean(1)
    return each.mean() if reduction == "mean" else each.sum()


def refuse_smoothing(label_smoothing: float, task: str) -> None:
    if label_smoothing:
        raise UserError(
            f"label_smoothing={label_smoothing}: only labels of classes can be smoothed, and the "
            f"targets of {task} are numbers"
        )


def check_numbers(targets: Tensor, shape: tuple[int, ...], where: str) -> None:
    """Raise UserError unless targets are finite float32 [N, *shape]."""
    if targets.dtype != torch.float32 or tuple(targets.shape[1:]) != shape:
        kind = str(targets.dtype).removeprefix("torch.")
        raise UserError(
            f"{where}: targets must be float32 [samples, {', '.join(map(str, shape))}], got {kind} "
            f"{list(targets.shape)}"
        )
    wrong = (~torch.isfinite(targets)).flatten(1).any(1).nonzero()
    if len(wrong):
        raise UserError(f"{where}: the target of sample {int(wrong[0])} is NaN or infinite")

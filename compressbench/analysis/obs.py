"""Optimal brain surgeon: changes weights column by column and compensates in later columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressbench.core.errors import CheckFailedError

_BLOCK = 128  # columns whose errors are applied to all later columns in one product

# (values of one column [G, R], its index) -> new values
ColumnUpdate = Callable[[Tensor, int], Tensor]


def damped(second: Tensor, damping: float) -> Tensor:
    """Make `second` [G, K, K] positive definite: add `damping` times the mean of its diagonal.

    A group whose inputs are all zero gets ones on its diagonal instead.
    """
    mean = second.diagonal(dim1=1, dim2=2).mean(dim=1)
    added = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    return second + torch.diag_embed(added[:, None].expand(second.shape[:2]))


def compensated(target: Tensor, hessian: Tensor, update_column: ColumnUpdate) -> Tensor:
    """Apply `update_column` to the columns of `target` [G, R, K], float64, from first to last.

    After column j has changed by an error e, the columns k > j move by -e U_jk / U_jj, where
    U^T U = hessian^-1. Of all moves of these columns this one minimizes the squared error that
    `hessian` [G, K, K] defines (Hassibi and Stork 1993; in fixed column order Frantar et al.
    2022, arXiv:2210.17323). Returns the new values; `target` is not modified.
    """
    upper = inverse_factor(hessian)
    pending, result = target.clone(), torch.zeros_like(target)
    for start in range(0, target.shape[2], _BLOCK):
        end = min(start + _BLOCK, target.shape[2])
        errors = []
        for column in range(start, end):
            result[..., column] = update_column(pending[..., column], column)
            error = pending[..., column] - result[..., column]
            errors.append(error / upper[:, None, column, column])
            move = upper[:, None, column, column + 1 : end]
            pending[..., column + 1 : end] -= errors[-1][..., None] * move
        pending[..., end:] -= torch.stack(errors, dim=-1) @ upper[:, start:end, end:]
    return result


def inverse_factor(hessian: Tensor) -> Tensor:
    """U [G, K, K], upper triangular, with U^T U = hessian^-1.

    Raises CheckFailedError if `hessian` is not numerically positive definite.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not bool(failed.any()):
        factor = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not bool(factor.info.any()):
            upper: Tensor = factor.L
            return upper
    raise CheckFailedError("the Hessian of a layer is not positive definite: raise damping")


def columns(values: Tensor, order: Tensor) -> Tensor:
    """Permute the columns of `values` [G, R, K] by `order` [G, K], separately for each group."""
    return values.gather(2, order[:, None].expand(values.shape))

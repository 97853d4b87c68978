"""Changing the weights of a layer one input after the other, the later ones making up for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressbench.core.errors import CheckFailedError

_BLOCK = 128  # inputs whose errors are passed on together to all that follow

ColumnUpdate = Callable[
    [Tensor, int], Tensor
]  # values of one column [G, R], its number -> new values


def damped(second: Tensor, damping: float) -> Tensor:
    """`second` [G, K, K] with `damping` times its mean diagonal added to the diagonal: positive
    definite. Inputs that are always zero get the mean, or 1.
    """
    mean = second.diagonal(dim1=1, dim2=2).mean(dim=1)
    added = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    return second + torch.diag_embed(added[:, None].expand(second.shape[:2]))


def compensated(target: Tensor, hessian: Tensor, update_column: ColumnUpdate) -> Tensor:
    """What becomes of `target` [G, R, K], float64, when `update_column` changes one
    column after the other.

    Once column j is changed, with error e, the columns k > j move by -e U_jk / U_jj, where
    U^T U = hessian^-1: of all moves they undo most of e in the squared error that `hessian`
    [G, K, K] measures (Hassibi and Stork 1993; in this order Frantar et al. 2022,
    arXiv:2210.17323).
    """
    upper = inverse_factor(hessian)
    left, found = target.clone(), torch.zeros_like(target)
    for start in range(0, target.shape[2], _BLOCK):
        end = min(start + _BLOCK, target.shape[2])
        errors = []
        for column in range(start, end):
            found[..., column] = update_column(left[..., column], column)
            error = left[..., column] - found[..., column]
            errors.append(error / upper[:, None, column, column])
            move = upper[:, None, column, column + 1 : end]
            left[..., column + 1 : end] -= errors[-1][..., None] * move
        left[..., end:] -= torch.stack(errors, dim=-1) @ upper[:, start:end, end:]
    return found


def inverse_factor(hessian: Tensor) -> Tensor:
    """U [G, K, K], upper triangular, U^T U = hessian^-1."""
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not bool(failed.any()):
        found = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not bool(found.info.any()):
            upper: Tensor = found.L
            return upper
    raise CheckFailedError("the Hessian of a layer is not positive definite: raise damping")


def columns(values: Tensor, order: Tensor) -> Tensor:
    """`values` [G, R, K] with the columns of each group in the order [G, K]."""
    return values.gather(2, order[:, None].expand(values.shape))

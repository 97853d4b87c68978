"""Prepares a float model for quantization: folds BatchNorm, then equalizes weight ranges."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.grid import Grid
from compressbench.core.types import Edit
from compressbench.core.validation import check_flag
from compressbench.quantization.preparation.equalization import equalize_
from compressbench.quantization.preparation.folding import check_scales_survive, fold_batchnorm_


def check_preparation(fold_batchnorm: bool, equalize: bool, correct_bias: bool) -> None:
    """Raise UserError for options that are not booleans, and for equalization without folding."""
    check_flag("fold_batchnorm", fold_batchnorm)
    check_flag("equalize", equalize)
    check_flag("correct_bias", correct_bias)
    if equalize and not fold_batchnorm:
        raise UserError("equalize=true needs fold_batchnorm=true: BatchNorm separates layers")


def prepare_(
    model: nn.Module, grids: Mapping[str, Grid], example: Tensor, fold: bool, equalize: bool
) -> tuple[list[Edit], tuple[str, ...]]:
    """Fold BatchNorm if `fold`, then equalize if `equalize`; returns the edits and warnings.

    `example` is a batch of two or more. Raises UserError if export would change scales of `grids`
    that must be powers of two (`check_scales_survive`).
    """
    edits: list[Edit] = []
    warnings: list[str] = []
    if fold:
        edit = fold_batchnorm_(model, example)
        if edit is None:
            warnings.append("fold_batchnorm: no BatchNorm can be folded; nothing changed")
        else:
            edits.append(edit)
    if equalize and not equalize_(model, example):
        warnings.append(
            "equalize: no two layers follow each other directly or through ReLU; nothing changed"
        )
    return edits, (*warnings, *check_scales_survive(model, grids, example))

"""Checks for pruning quantized weights: 8-bit grids, at most half of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compressbench.core.edits import weight_bits
from compressbench.core.errors import UserError
from compressbench.core.types import Artifact, Stage

GRID_BITS = 8  # coarser grids would lose too much accuracy, since no finetuning may follow
GRID_SPARSITY = 0.5
NO_UPDATE = "this criterion updates weights, but quantized weights must stay on their grid"


def check_scheme(stage: Stage, sparsity: float | None) -> None:
    """Reject pruning after a stage that quantizes to other bits, or to too high a sparsity."""
    scheme = getattr(stage, "scheme", None)
    if scheme is None:  # a codebook, which need not contain zero
        raise UserError("pruning after codebook is not possible: prune before it")
    other = scheme().all_bits() - {GRID_BITS}
    if other:
        raise UserError(
            f"pruning after quantization needs {GRID_BITS}-bit weights, got "
            f"bits={min(other)}: no finetune can follow on a grid"
        )
    if sparsity is not None and sparsity > GRID_SPARSITY:
        raise UserError(
            f"sparsity after quantization must be at most {GRID_SPARSITY}, "
            f"got {sparsity}: no finetune can follow on a grid"
        )


def check_grids(start: Artifact, masks: Mapping[str, Tensor], moves: bool) -> None:
    """Reject masks that prune too many quantized weights; `moves`: weights are updated, too."""
    bits = weight_bits(start.edits)
    if not bits:
        return
    if moves:
        raise UserError(NO_UPDATE)
    coarse = next((n for n, b in bits.items() if b != GRID_BITS), None)
    if coarse is not None:
        raise UserError(
            f"prune after quantize needs {GRID_BITS}-bit weights, {coarse} has {bits[coarse]}: "
            "no finetune can follow on a grid"
        )
    total = sum(mask.numel() for mask in masks.values())
    share = sum(int((~mask).sum()) for mask in masks.values()) / total
    if share > GRID_SPARSITY + 0.5 * len(masks) / total:  # rounding may add one per layer
        raise UserError(
            f"prune after quantize may zero at most {GRID_SPARSITY} of the weights, got "
            f"{share:.3g}: no finetune can follow on a grid"
        )

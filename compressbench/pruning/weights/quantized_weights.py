"""When weights on integer grids may be pruned: 8 bits, at most half of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compressbench.core.edits import weight_bits
from compressbench.core.errors import UserError
from compressbench.core.types import Artifact, Stage

GRID_BITS = 8  # coarser grids lose too much: their integers are few, and no finetune may follow
GRID_SPARSITY = 0.5
NO_UPDATE = "this criterion moves weights, and quantized ones must stay on their grid"


def check_scheme(stage: Stage, sparsity: float | None) -> None:
    """Refuse pruning after a quantizing stage that makes other grids, or to more zeros."""
    scheme = getattr(stage, "scheme", None)
    if scheme is None:  # a codebook: zero may not be one of its values
        raise UserError("pruning after a codebook is not possible: prune before it")
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
    """Refuse masks that weights on integer grids do not bear; `moves`: weights change, too."""
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
    if share > GRID_SPARSITY + 0.5 * len(masks) / total:  # each layer may round up
        raise UserError(
            f"prune after quantize may zero at most {GRID_SPARSITY} of the weights, got "
            f"{share:.3g}: no finetune can follow on a grid"
        )

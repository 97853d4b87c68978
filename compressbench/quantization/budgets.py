"""The least bytes of a file with mixed bits, known before anything is measured or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from compressbench.core.errors import LimitError
from compressbench.core.grid import Grid
from compressbench.core.layers import weight_owners
from compressbench.quantization.mixed_precision import Allocation, layer_bytes


def check_budget(
    allocation: Allocation, model: nn.Module, grids: Mapping[str, Grid], free: Sequence[str]
) -> None:
    """Raise LimitError for a budget below the bytes of the weights at the smallest width.

    A file has more than its weights, and may store them in a wider integer type; so a budget that
    passes may still be too low. `free` are the layers whose bits are chosen.
    """
    bits, budget = min(allocation.widths), allocation.budget
    least = _weight_bytes(model, grids, free, bits, 2)
    widest = _weight_bytes(model, grids, free, max(allocation.widths), 8)
    if isinstance(budget, int) and least > budget:
        raise LimitError(
            f"allocation.budget={budget:,} bytes is too low: the weights have at least {least:,} "
            f"bytes, with {bits} bits in every layer",
            least / budget - 1,
        )
    share = least / widest  # what else is in both files brings the share closer to 1
    if isinstance(budget, float) and share > budget:
        raise LimitError(
            f"allocation.budget={budget} is too low: with {bits} bits in every layer the file has "
            f"at least {share:.3f} of its bytes at the largest width",
            share / budget - 1,
        )


def _weight_bytes(
    model: nn.Module, grids: Mapping[str, Grid], free: Sequence[str], bits: int, narrowest: int
) -> int:
    """Bytes of all quantized weights with `bits` in the `free` layers; tied weights count once."""
    owners = weight_owners(model, [*free, *(name for name in grids if name not in free)])
    return sum(
        layer_bytes(
            model.get_parameter(f"{name}.weight").detach(),
            replace(grids[name], bits=bits) if name in free else grids[name],
            narrowest,
        )
        for name in set(owners.values())
    )

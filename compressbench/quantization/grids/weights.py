"""Quantized weights into a model, checked; and what became of each of its layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from compressbench.core.coverage import coverage
from compressbench.core.edits import set_scale_
from compressbench.core.errors import CheckFailedError
from compressbench.core.grid import Grid, GridWeight, WeightQuantizer, expand, step_limits
from compressbench.core.layers import weight_owners, weights
from compressbench.core.types import Context, Coverage, Edit
from compressbench.quantization.grids.scheme import TABLES, grid_options, grid_text
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.rounding.nearest import Nearest


def quantize_weights_(
    model: nn.Module, grids: Mapping[str, Grid], method: WeightQuantizer, context: Context
) -> Edit:
    """Put the weights of the layers in `grids` on their grids; a tied weight once.

    Embeddings come first, rounded to nearest on the scales of the method: of a row that is looked
    up as it is, no weight can make up for another, so that is what every method comes to.
    """
    tables = {n: g for n, g in grids.items() if isinstance(model.get_submodule(n), TABLES)}
    rounding = Nearest(getattr(method, "ranges", MinMax()))
    _round_(model, tables, rounding, context)
    _round_(model, {n: g for n, g in grids.items() if n not in tables}, method, context)
    return {"kind": "weight_grid", "layers": {n: grid_options(g) for n, g in grids.items()}}


def _round_(
    model: nn.Module, grids: Mapping[str, Grid], method: WeightQuantizer, context: Context
) -> None:
    owners = weight_owners(model, grids)
    for name in grids:
        if not bool(torch.isfinite(model.get_parameter(f"{name}.weight")).all()):
            raise CheckFailedError(f"{name}.weight holds NaN or infinity before quantization")
    if not grids:
        return
    rounded = method(model, {name: grids[name] for name in owners.values()}, context)
    set_weights_(model, grids, {name: rounded[owner] for name, owner in owners.items()})


def set_weights_(
    model: nn.Module, grids: Mapping[str, Grid], results: Mapping[str, GridWeight]
) -> None:
    """Write quantized weights into the layers, with their scales and zero points."""
    for name, result in results.items():
        _check_result(name, model.get_parameter(f"{name}.weight"), result, grids[name])
    with torch.no_grad():
        for name, result in results.items():
            zero_point = None if result.zero_point is None else result.zero_point.clone()
            set_scale_(model.get_submodule(name), result.scale.clone(), zero_point)
            model.get_parameter(f"{name}.weight").copy_(result.weight)


def _check_result(name: str, weight: torch.Tensor, result: GridWeight, grid: Grid) -> None:
    """Fail closed on a method that leaves its grid or revives weights that were zero."""
    if result.steps.shape != weight.shape:
        raise CheckFailedError(f"{name}: {tuple(result.steps.shape)} steps for its weight")
    if result.scale.shape != grid.scale_shape(weight):
        raise CheckFailedError(f"{name}: {tuple(result.scale.shape)} scales for its weight")
    low, high = step_limits(grid, result.zero_point)
    if low.ndim:
        low, high = expand(low, weight), expand(high, weight)
    if bool(((result.steps < low) | (result.steps > high)).any()):
        raise CheckFailedError(f"{name}: steps beyond {grid.bits} bits")
    if bool(result.steps[weight == 0].any()):
        raise CheckFailedError(f"{name}: a weight that was zero is not zero any more")


def coverage_of_grids(
    model: nn.Module, grids: Mapping[str, Grid], reasons: Mapping[str, str]
) -> tuple[Coverage, ...]:
    """One row for each module with weights: on which grid, or why not."""
    return quantized(model, {name: grid_text(grid) for name, grid in grids.items()}, reasons)


def quantized(
    model: nn.Module, texts: Mapping[str, str], reasons: Mapping[str, str]
) -> tuple[Coverage, ...]:
    """Coverage of quantization: the layers in `texts`, which say how; `reasons` why not others."""
    changes = {name: (weights(model.get_submodule(name)), text) for name, text in texts.items()}
    return coverage(model, changes, reasons, "left float")

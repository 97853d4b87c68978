"""Quantizes the weights of a model, checks the result, and reports coverage."""

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
    """Quantize the weights of the layers in `grids` in place; tied weights once. Returns the edit.

    Embeddings come first. They are rounded to nearest on the scales of the method: their rows are
    outputs, in which no weight can compensate for the error of another.
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
    """Raise CheckFailedError for values outside the grid and for zero weights made nonzero."""
    if result.steps.shape != weight.shape:
        wanted, got = tuple(weight.shape), tuple(result.steps.shape)
        raise CheckFailedError(f"{name}: expected steps of shape {wanted}, got {got}")
    if result.scale.shape != grid.scale_shape(weight):
        wanted, got = tuple(grid.scale_shape(weight)), tuple(result.scale.shape)
        raise CheckFailedError(f"{name}: expected scales of shape {wanted}, got {got}")
    low, high = step_limits(grid, result.zero_point)
    if low.ndim:
        low, high = expand(low, weight), expand(high, weight)
    if bool(((result.steps < low) | (result.steps > high)).any()):
        raise CheckFailedError(f"{name}: steps exceed {grid.bits} bits")
    if bool(result.steps[weight == 0].any()):
        raise CheckFailedError(f"{name}: a weight that was zero is not zero any more")


def coverage_of_grids(
    model: nn.Module, grids: Mapping[str, Grid], reasons: Mapping[str, str]
) -> tuple[Coverage, ...]:
    """Coverage with a row for each module with weights: its grid, or the reason for none."""
    return quantized(model, {name: grid_text(grid) for name, grid in grids.items()}, reasons)


def quantized(
    model: nn.Module, texts: Mapping[str, str], reasons: Mapping[str, str]
) -> tuple[Coverage, ...]:
    """Coverage of quantization: `texts` describe quantized layers, `reasons` all others."""
    changes = {name: (weights(model.get_submodule(name)), text) for name, text in texts.items()}
    return coverage(model, changes, reasons, "left float")

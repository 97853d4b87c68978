"""Stores biases as int32 in units of activation scale * weight scale, as integer kernels do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import add_initializer, constant, inputs, insert_before
from compressbench.export.grids import Grids, WeightGrid
from compressbench.export.lowering.batchnorm import is_layer
from compressbench.export.lowering.integer import integer_grid
from compressbench.export.lowering.storage import Storage

LARGEST = 2.0**30  # leaves half of the int32 range to the sum of products
FREE = 2.0**24  # float32 precision, for channels whose weights are all zero


@dataclass(frozen=True)
class Biases:
    """Number of biases stored as int32 and as float32; `widened` channels per weight (`_fit`)."""

    int32: int
    float32: int
    widened: Mapping[str, int]


def quantize_biases(
    graph: ir.Graph, grids: Grids, storages: Mapping[str, Storage]
) -> tuple[dict[str, WeightGrid], Biases]:
    """Store the biases of layers that run on integer kernels as int32; return the new grids."""
    fitted = dict(grids)
    widened: dict[str, int] = {}
    integer = total = 0
    for node in list(graph):
        weight, bias = inputs(node, 3)[1:]
        values = constant(bias)
        if not is_layer(node) or weight is None or weight.name is None or values is None:
            continue
        total += 1
        activations = integer_grid(node)
        storage = storages.get(weight.name)
        if activations is None or storage is None or storage.kernel != "integer":
            continue
        step = activations.scale
        grid, changed = _fit(fitted[weight.name], values, step)
        if grid is not fitted[weight.name] and len(weight.uses()) > 1:
            continue  # another node uses the grid too, with another bias
        fitted[weight.name] = grid
        widened |= {weight.name: changed} if changed else {}
        _quantize(graph, node, values, step * grid.scale)
        integer += 1
    return fitted, Biases(integer, total - integer, widened)


def _fit(grid: WeightGrid, bias: NDArray[Any], step: float) -> tuple[WeightGrid, int]:
    """Choose scales so that the bias fits into int32; return the grid and the channels re-rounded.

    A channel whose steps are all zero can take any scale: it gets one that keeps float32 precision
    of the bias. Where a bias exceeds 2**30 units, the scale is increased until it fits and the
    channel is rounded to the new scale; its products are negligible beside such a bias.
    """
    size = np.abs(bias.astype(np.float64)) / step
    empty = ~grid.steps.reshape(len(grid.steps), -1).any(axis=1)
    each = grid.per_channel()
    scale = each.scale
    free = empty & (bias != 0) & (grid.scale.ndim > 0)
    over = ~free & (size > LARGEST * scale)
    if not free.any() and not over.any():
        return grid, 0
    wide = np.where(free, size / FREE, np.where(over, size / LARGEST, scale))
    ratio = np.where(over, scale / wide, 1.0).reshape(-1, *[1] * (grid.steps.ndim - 1))
    steps = np.rint(grid.steps * ratio).astype(np.int16)
    return replace(each, steps=steps, scale=wide), int((over & ~empty).sum())


def _quantize(
    graph: ir.Graph, node: ir.Node, bias: NDArray[Any], scale: NDArray[np.float64]
) -> None:
    unit = scale.astype(np.float32)
    assert node.inputs[2] is not None
    name = f"{node.inputs[2].name}.{_suffix(graph)}"
    integers = np.rint(bias.astype(np.float64) / unit).astype(np.int32)
    stored = add_initializer(graph, name, integers)
    units = add_initializer(graph, f"{name}.scale", unit)
    attributes = {"axis": 0} if unit.ndim else {}
    value = insert_before(node, "DequantizeLinear", [stored, units], attributes)
    node.replace_input_with(2, value)


def _suffix(graph: ir.Graph) -> str:
    """An unused suffix: nodes with different units may share a bias."""
    return f"int32.{len(graph.initializers)}"

"""Weights as integers of 8, 4 or 2 bits.

Where an integer kernel reads them, DequantizeLinear marks the integers; 4 and 2 bits are cast to
int8 first, which a runtime does once, when it loads the file. Where a float kernel reads them,
weight = Cast(integers) * scale, which is also computed once; DequantizeLinear would be computed at
every call, and ONNX Runtime would turn it into a MatMul that rounds the activations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import add_initializer, insert_before, replace
from compressbench.export.grids import Grids, WeightGrid
from compressbench.export.lowering.integer import integer_grid
from compressbench.export.lowering.linear import is_transposed_weight

_TYPES = {
    "int2": np.dtype(ml_dtypes.int2),
    "int4": np.dtype(ml_dtypes.int4),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
}
_OFFSET = 128  # of uint8 storage


def store_integers(graph: ir.Graph, grids: Grids, wide: Collection[str]) -> dict[str, str]:
    """Replace the float initializers of all `grids`; the type stored, by initializer.

    `wide` are the weights of which int8 would saturate somewhere (`export.saturation`): they are
    stored as uint8, integers + 128, for which x86 CPUs without VNNI take a slower, exact kernel.
    """
    order = {node: position for position, node in enumerate(graph)}
    stored: dict[str, str] = {}
    for name, grid in grids.items():
        weight = graph.initializers[name]
        uses = [usage.node for usage in weight.uses()]
        turned = all(is_transposed_weight(node) for node in uses)
        readers = [u.node for n in uses for u in n.outputs[0].uses()] if turned else uses
        axis = 1 if turned else 0
        stored[name] = _storage(grid.bits, name in wide)
        anchor = min(uses, key=order.__getitem__)
        new = _write(anchor, name, grid, axis, stored[name], _all_integer(readers))
        for node in uses:
            if turned:
                replace(node, new)
            else:
                node.replace_input_with(list(node.inputs).index(weight), new)
        graph.initializers.pop(name)
    return stored


def _all_integer(readers: Sequence[ir.Node]) -> bool:
    return bool(readers) and all(integer_grid(node) is not None for node in readers)


def _storage(bits: int, wide: bool) -> str:
    """int2 for 2 bits, int4 for 3 and 4, int8 for 5 to 8; uint8 where that could saturate."""
    if bits < 5:
        return "int2" if bits == 2 else "int4"
    return "uint8" if wide else "int8"


def _write(
    anchor: ir.Node, name: str, grid: WeightGrid, axis: int, storage: str, integer: bool
) -> ir.Value:
    """Store the integers and compute the weight from them in front of `anchor`."""
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)
    values = grid.integers.T if axis == 1 else grid.integers
    offset = _OFFSET if storage == "uint8" else 0
    packed = (np.ascontiguousarray(values).astype(np.int16) + offset).astype(_TYPES[storage])
    stored = add_initializer(graph, f"{name}.integers", packed)
    scale = grid.scale.astype(np.float32)
    if integer:
        return _dequantize(anchor, name, stored, scale, axis, storage)
    broadcast = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    factor = add_initializer(graph, f"{name}.scale", broadcast if scale.ndim else scale)
    exact = insert_before(anchor, "Cast", [stored], {"to": int(ir.DataType.FLOAT)})
    return insert_before(anchor, "Mul", [exact, factor])


def _dequantize(
    anchor: ir.Node,
    name: str,
    stored: ir.Value,
    scale: NDArray[Any],
    axis: int,
    storage: str,
) -> ir.Value:
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)
    operands = [stored, add_initializer(graph, f"{name}.scale", scale)]
    if storage in {"int2", "int4"}:
        operands[0] = insert_before(anchor, "Cast", [stored], {"to": int(ir.DataType.INT8)})
    if storage == "uint8":
        zero_point = np.full(scale.shape, _OFFSET, np.uint8)
        operands.append(add_initializer(graph, f"{name}.zero_point", zero_point))
    elif anchor.op_type != "Conv":  # ONNX Runtime fuses Conv without zero points, but no Gemm
        zero_point_int8 = np.zeros(scale.shape, np.int8)
        operands.append(add_initializer(graph, f"{name}.zero_point", zero_point_int8))
    return insert_before(anchor, "DequantizeLinear", operands, {"axis": axis} if scale.ndim else {})

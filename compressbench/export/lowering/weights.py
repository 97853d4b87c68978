"""Stores weights as integers of 8, 4 or 2 bits.

- Integer kernels: DequantizeLinear marks the integers; those of 4 and 2 bits are cast to int8,
  which a runtime does once on loading.
- Float kernels: weight = (Cast(integers) - zero point) * scale, also computed once on loading.
  DequantizeLinear, blocked or not, would run at every call (doubling the time of a ResNet layer),
  and ONNX Runtime would fuse it into a MatMul that quantizes the activations.
- Codebooks: weight = Gather(values, Cast(codes)) * scale, computed once on loading.
- Lookup tables: rows of integers are gathered and only they are converted to float, so the table
  takes one byte per weight in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import add_initializer, drop, insert_before, replace
from compressbench.export.grids import Grids, WeightGrid
from compressbench.export.lowering.dynamic import integer_product
from compressbench.export.lowering.integer import readers
from compressbench.export.lowering.linear import is_transposed_weight
from compressbench.export.lowering.storage import Storage

_FLOAT = {"to": int(ir.DataType.FLOAT)}
_TYPES = {
    "int2": np.dtype(ml_dtypes.int2),
    "int4": np.dtype(ml_dtypes.int4),
    "int8": np.dtype(np.int8),
    "uint2": np.dtype(ml_dtypes.uint2),
    "uint4": np.dtype(ml_dtypes.uint4),
    "uint8": np.dtype(np.uint8),
}


def store_integers(graph: ir.Graph, grids: Grids, storages: Mapping[str, Storage]) -> None:
    """Replace the float initializers of all `grids` by integers and the nodes that decode them."""
    order = {node: position for position, node in enumerate(graph)}
    for name, grid in grids.items():
        uses = [usage.node for usage in graph.initializers[name].uses()]
        anchor = min(uses, key=order.__getitem__)
        if storages[name].kernel == "lookup":
            _store_table(graph, name, grid, storages[name])
        elif storages[name].kernel == "dynamic":
            _store_products(graph, anchor, name, grid, storages[name])
        else:
            _store_weight(graph, anchor, name, grid, storages[name])
        graph.initializers.pop(name)


def _store_weight(
    graph: ir.Graph, anchor: ir.Node, name: str, grid: WeightGrid, storage: Storage
) -> None:
    """Insert the nodes that decode a weight before `anchor` and redirect all its readers."""
    weight = graph.initializers[name]
    uses = [usage.node for usage in weight.uses()]
    turned = all(is_transposed_weight(node) for node in uses)
    write = _dequantized if storage.kernel == "integer" else _multiplied
    new = write(anchor, name, grid, storage, turned)
    for node in uses:
        if turned:
            replace(node, new)
        else:
            node.replace_input_with(list(node.inputs).index(weight), new)


def _dequantized(
    anchor: ir.Node, name: str, grid: WeightGrid, storage: Storage, turned: bool
) -> ir.Value:
    """DequantizeLinear of 8-bit integers, which a runtime fuses into an integer kernel."""
    graph = _graph(anchor)
    stored = _codes(graph, name, grid.steps, _along(storage.zero_point, grid), storage, turned)
    scale = add_initializer(graph, f"{name}.scale", grid.scale.astype(np.float32))
    operands = [_as_int8(anchor, name, stored, grid, storage, turned), scale]
    if storage.kind == "uint8":
        assert storage.zero_point is not None
        zero_point = np.broadcast_to(storage.zero_point, grid.scale.shape).astype(np.uint8)
        operands.append(add_initializer(graph, f"{name}.zero_point", zero_point))
    elif anchor.op_type != "Conv":  # ONNX Runtime fuses a Gemm only if it has zero points
        zeros = np.zeros(grid.scale.shape, np.int8)
        operands.append(add_initializer(graph, f"{name}.zero_point", zeros))
    axis = grid.steps.ndim - 1 if turned else 0
    return insert_before(
        anchor, "DequantizeLinear", operands, {"axis": axis} if grid.scale.ndim else {}
    )


def _as_int8(
    anchor: ir.Node, name: str, stored: ir.Value, grid: WeightGrid, storage: Storage, turned: bool
) -> ir.Value:
    if storage.width == 8:
        return stored
    if storage.zero_point is not None:
        stored = _centered(anchor, name, stored, _along(storage.zero_point, grid), storage, turned)
    return insert_before(anchor, "Cast", [stored], {"to": int(ir.DataType.INT8)})


def _multiplied(
    anchor: ir.Node, name: str, grid: WeightGrid, storage: Storage, turned: bool
) -> ir.Value:
    """(Cast(integers) - zero point) * scale; grouped weights are reshaped at the end."""
    graph, grouped = _graph(anchor), grid.scale.ndim == 2
    steps = grid.rows() if grouped else grid.steps
    scale, zero_point = (_along(v, grid) for v in (grid.scale, storage.zero_point))
    assert scale is not None
    stored = _codes(graph, name, steps, zero_point, storage, turned)
    if grid.codebook is None:
        exact = _centered(anchor, name, stored, zero_point, storage, turned)
    else:
        exact = _looked_up(anchor, name, stored, grid.codebook)
    if not grid.scale.ndim and float(grid.scale) == 1.0:
        return exact
    factor = add_initializer(graph, f"{name}.scale", _turn(scale.astype(np.float32), turned))
    weight = insert_before(anchor, "Mul", [exact, factor])
    if not grouped:
        return weight
    shape = grid.steps.shape[::-1] if turned else grid.steps.shape
    target = add_initializer(graph, f"{name}.shape", np.array(shape, np.int64))
    return insert_before(anchor, "Reshape", [weight, target])


def _centered(
    anchor: ir.Node,
    name: str,
    stored: ir.Value,
    zero_point: NDArray[Any] | None,
    storage: Storage,
    turned: bool,
) -> ir.Value:
    """Cast(integers) - Cast(zero point) in float32, which is exact."""
    exact = insert_before(anchor, "Cast", [stored], _FLOAT)
    if zero_point is None:
        return exact
    offset = _turn(zero_point, turned).astype(_TYPES[storage.kind])
    value = add_initializer(_graph(anchor), f"{name}.offset", offset)
    return insert_before(anchor, "Sub", [exact, insert_before(anchor, "Cast", [value], _FLOAT)])


def _looked_up(
    anchor: ir.Node, name: str, codes: ir.Value, codebook: NDArray[np.float64]
) -> ir.Value:
    """The codebook's values at the codes, float32."""
    values = add_initializer(_graph(anchor), f"{name}.codebook", codebook.astype(np.float32))
    index = insert_before(anchor, "Cast", [codes], {"to": int(ir.DataType.INT32)})
    return insert_before(anchor, "Gather", [values, index])


def _store_products(
    graph: ir.Graph, anchor: ir.Node, name: str, grid: WeightGrid, storage: Storage
) -> None:
    """Replace every node that reads the weight by ConvInteger or MatMulInteger with uint8 codes."""
    nodes = readers(graph, name)
    turned = grid.steps.ndim == 2 and nodes[0].op_type != "Conv"
    along = _along(storage.zero_point, grid)
    codes = _codes(graph, name, grid.steps, along, storage, turned)
    assert storage.zero_point is not None
    offset = storage.zero_point if storage.uneven else storage.zero_point.min()
    if storage.width < 8:
        if storage.uneven:
            exact = _centered(anchor, name, codes, along, storage, turned)
            offset = np.int64(128)
            half = add_initializer(graph, f"{name}.half", np.array(128, np.float32))
            codes = insert_before(anchor, "Add", [exact, half])
        codes = insert_before(anchor, "Cast", [codes], {"to": int(ir.DataType.UINT8)})
    zero_point = add_initializer(graph, f"{name}.zero_point", np.asarray(offset, np.uint8))
    positions = 0 if turned else grid.steps.ndim - 2
    scale = grid.scale.astype(np.float32)
    if scale.ndim:
        scale = scale.reshape(-1, *[1] * positions)
    scales = add_initializer(graph, f"{name}.scale", scale)
    turns = [usage.node for usage in graph.initializers[name].uses()]
    for node in nodes:
        integer_product(node, codes, zero_point, scales, positions)
    for node in turns:
        if node.op_type == "Transpose":
            drop(node)


def _store_table(graph: ir.Graph, name: str, grid: WeightGrid, storage: Storage) -> None:
    """(Cast(Gather(integers, ids)) - zero points) * scales, for the looked-up rows only."""
    nodes = readers(graph, name)
    steps = grid.rows() if grid.scale.ndim == 2 else grid.steps
    scale, zero_point = (_along(values, grid) for values in (grid.scale, storage.zero_point))
    assert scale is not None
    stored = _codes(graph, name, steps, zero_point, storage, False)
    if storage.width < 8:
        eight = ir.DataType.INT8 if storage.zero_point is None else ir.DataType.UINT8
        stored = insert_before(nodes[0], "Cast", [stored], {"to": int(eight)})
    for node in nodes:
        ids = node.inputs[1]
        picked = insert_before(node, "Gather", [stored, ids])
        if grid.codebook is None:
            rows = insert_before(node, "Cast", [picked], _FLOAT)
        else:
            rows = _looked_up(node, name, picked, grid.codebook)
        if zero_point is not None and grid.codebook is None:
            offset = zero_point.astype(np.uint8)
            offset_rows = _rows_of(node, f"{name}.offset", offset, ids)
            rows = insert_before(
                node, "Sub", [rows, insert_before(node, "Cast", [offset_rows], _FLOAT)]
            )
        if scale.ndim or float(scale) != 1.0:
            factor = _rows_of(node, f"{name}.scale", scale.astype(np.float32), ids)
            rows = insert_before(node, "Mul", [rows, factor])
        if grid.scale.ndim == 2:
            assert ids is not None and ids.shape is not None
            shape = np.array([*[0] * len(ids.shape), grid.steps.shape[1]], np.int64)
            target = add_initializer(graph, f"{name}.shape", shape)
            rows = insert_before(node, "Reshape", [rows, target])
        replace(node, rows)


def _rows_of(node: ir.Node, name: str, values: NDArray[Any], ids: ir.Value | None) -> ir.Value:
    """The entries of `values` at `ids`, or `values` itself if it is one number."""
    stored = add_initializer(_graph(node), name, values)
    return insert_before(node, "Gather", [stored, ids]) if values.ndim else stored


def _codes(
    graph: ir.Graph,
    name: str,
    steps: NDArray[np.int16],
    zero_point: NDArray[Any] | None,
    storage: Storage,
    turned: bool,
) -> ir.Value:
    values = steps if zero_point is None else steps + zero_point
    packed = np.ascontiguousarray(_turn(values, turned)).astype(_TYPES[storage.kind])
    return add_initializer(graph, f"{name}.integers", packed)


def _along(values: NDArray[Any] | None, grid: WeightGrid) -> NDArray[Any] | None:
    """Reshape values in the shape of the scale to broadcast over the steps (or the rows)."""
    if values is None or values.ndim == 0:
        return values
    if values.ndim == 2:
        return values[:, :, None]
    return values.reshape(-1, *[1] * (grid.steps.ndim - 1))


def _turn(values: NDArray[Any], turned: bool) -> NDArray[Any]:
    """[O, I] -> [I, O], [O, G, n] -> [G, n, O]: the layout of a MatMul weight."""
    return np.moveaxis(values, 0, -1) if turned and values.ndim else values


def _graph(anchor: ir.Node) -> ir.Graph:
    assert isinstance(anchor.graph, ir.Graph)
    return anchor.graph

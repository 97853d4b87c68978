"""Lets operators that only move values work on integers, so that integer kernels follow them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import add_initializer, attribute, constant, inputs

# Operators whose outputs are values of their first input. Pad may add a constant; Resize and Concat
# belong to them under conditions.
MOVES = {
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile",
    "Gather", "MaxPool", "Pad", "Resize", "Concat",
}  # fmt: skip


def pad_in_convolutions(graph: ir.Graph) -> None:
    """Pad with zeros -> Conv becomes a Conv that pads, which integer kernels do with the zero point
    and ONNX Runtime would do as well, after our passes.
    """
    for node in reversed(list(graph)):
        if node.op_type != "Pad" or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        readers = [usage.node for usage in node.outputs[0].uses()]
        sides = _zeros_around(node)
        if sides is None or not all(_can_pad(reader, node.outputs[0]) for reader in readers):
            continue
        for reader in readers:
            own = attribute(reader, "pads", [0] * len(sides))
            total = [int(a) + b for a, b in zip(own, sides, strict=True)]
            reader.attributes["pads"] = ir.AttrInt64s("pads", total)
            reader.replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """How many zeros a Pad adds at the beginnings, then at the ends, of all axes but the first two.

    None if it does anything else.
    """
    amounts, value, axes = (constant(v) for v in inputs(pad, 4)[1:])
    other = len(pad.inputs) > 3 and pad.inputs[3] is not None and axes is None
    if attribute(pad, "mode", "constant") != "constant" or amounts is None or other:
        return None
    if len(pad.inputs) > 2 and pad.inputs[2] is not None and (value is None or np.any(value)):
        return None
    shape = pad.outputs[0].shape
    if shape is None:
        return None
    both = np.zeros((2, len(shape)), np.int64)
    both[:, np.arange(len(shape)) if axes is None else axes] = amounts.reshape(2, -1)
    fits = both.min() >= 0 and not both[:, :2].any()
    return [int(a) for a in both[:, 2:].reshape(-1)] if fits else None


def _can_pad(reader: ir.Node, padded: ir.Value) -> bool:
    """Whether a node is a Conv that reads the padded value, with padding of its own at most."""
    if reader.op_type != "Conv" or reader.inputs[0] is not padded:
        return False
    return str(attribute(reader, "auto_pad", "NOTSET")) in {"NOTSET", "VALID"}


def move_integers(graph: ir.Graph) -> None:
    """DequantizeLinear -> move becomes move -> DequantizeLinear, which computes the same.

    ONNX Runtime does so for some moves, after our passes: then it would find float layers between
    quantized activations, and quantize their weights.
    """
    for node in list(graph):
        if node.op_type not in MOVES or any(v.is_graph_output() for v in node.outputs):
            continue
        source = _dequantizer(node)
        if source is None or not _moves_integers(node, source):
            continue
        for value in _moved(node):
            assert value.producer() is not None
            node.replace_input_with(list(node.inputs).index(value), _integers(value))
        for value in node.outputs:
            if value.uses():
                _dequantize_after(node, value, source)
    _drop_repeated(graph)


def _moved(node: ir.Node) -> list[ir.Value]:
    """The inputs whose values a node moves."""
    found = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in found if value is not None]


def _integers(value: ir.Value) -> ir.Value | None:
    source = value.producer()
    assert source is not None
    return source.inputs[0]


def _dequantizer(node: ir.Node) -> ir.Node | None:
    """The static DequantizeLinear of one grid that all values that a node moves come from, or one
    of several with equal grids.
    """
    sources = [value.producer() for value in _moved(node)]
    grids = [_grid(source) for source in sources]
    first = grids[0] if grids else None
    return sources[0] if first is not None and all(grid == first for grid in grids) else None


def _grid(node: ir.Node | None) -> tuple[float, int] | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear of uint8 activations."""
    if node is None or node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return None
    scale, zero_point = (constant(v) for v in inputs(node, 3)[1:])
    if scale is None or zero_point is None or scale.ndim or zero_point.dtype != np.uint8:
        return None
    return float(scale), int(zero_point)


def _moves_integers(node: ir.Node, source: ir.Node) -> bool:
    """Whether a node can work on the integers of `source`; a Pad is given its value as one."""
    match node.op_type:
        case "MaxPool":
            return len(node.outputs) == 1
        case "Resize":
            return str(attribute(node, "mode", "nearest")) == "nearest"
        case "Pad":
            return attribute(node, "mode", "constant") != "constant" or _pad_on_grid(node, source)
        case _:
            return True


def _pad_on_grid(pad: ir.Node, source: ir.Node) -> bool:
    """Replace the value of a constant Pad by its integer; False if it is not on the grid."""
    grid, value = _grid(source), inputs(pad, 3)[2]
    number = np.array(0.0) if value is None else constant(value)
    if grid is None or number is None or pad.graph is None:
        return False
    steps = float(number) / grid[0] + grid[1]
    if not 0 <= steps <= 255 or abs(steps - round(steps)) > 1e-3:
        return False
    assert isinstance(pad.graph, ir.Graph)
    integer: NDArray[np.uint8] = np.array(round(steps), np.uint8)
    name = f"{pad.outputs[0].name}.pad"
    pad.resize_inputs(max(3, len(pad.inputs)))
    pad.replace_input_with(2, add_initializer(pad.graph, name, integer))
    return True


def _dequantize_after(node: ir.Node, value: ir.Value, source: ir.Node) -> None:
    """Let what reads the output `value` of `node` read its dequantized values."""
    uses = list(value.uses())
    new = ir.node("DequantizeLinear", [value, *source.inputs[1:]])
    assert node.graph is not None
    node.graph.insert_after(node, new)
    new.outputs[0].type, new.outputs[0].shape = value.type, value.shape
    value.type = ir.TensorType(ir.DataType.UINT8)
    for usage in uses:
        usage.node.replace_input_with(usage.idx, new.outputs[0])


def _drop_repeated(graph: ir.Graph) -> None:
    """Remove a QuantizeLinear to the grid that its input was dequantized from."""
    for node in list(graph):
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if node.op_type != "QuantizeLinear" or source is None or _grid(node) is None:
            continue
        if source.op_type == "DequantizeLinear" and _grid(source) == _grid(node):
            assert source.inputs[0] is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], source.inputs[0])
            graph.remove(node, safe=True)

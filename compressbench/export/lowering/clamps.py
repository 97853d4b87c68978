"""Removes a Relu or Clip made redundant by the saturation of the QuantizeLinear after it."""

from __future__ import annotations

import math

import onnx_ir as ir

from compressbench.export.graph import constant, inputs, replace


def drop_clamps(graph: ir.Graph) -> None:
    """Remove a clamp to [low, high] if every reader quantizes to a uint8 range inside it."""
    for node in list(graph):
        limits = _limits(node)
        if limits is None or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        readers = [usage.node for usage in node.outputs[0].uses()]
        if readers and all(_saturates(reader, *limits) for reader in readers):
            replace(node, node.inputs[0])


def _limits(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    low, high = (constant(v) for v in inputs(node, 3)[1:])
    if (low is None and inputs(node, 3)[1]) or (high is None and inputs(node, 3)[2]):
        return None
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _saturates(reader: ir.Node, low: float, high: float) -> bool:
    """Whether both limits round to the ends of the grid, 0 and 255, or beyond them."""
    if reader.op_type != "QuantizeLinear":
        return False
    scale, zero_point = (constant(v) for v in inputs(reader, 3)[1:])
    if scale is None or zero_point is None or scale.ndim or zero_point.dtype != "uint8":
        return False
    lowest, highest = (v / float(scale) + float(zero_point) for v in (low, high))
    return lowest <= 0.5 and highest >= 254.5

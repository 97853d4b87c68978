"""Which nodes a runtime computes with integers: quantized input, and an output that can be."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from compressbench.export.graph import constant, inputs

_MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"}


class ActivationGrid(NamedTuple):
    """`levels` is the largest integer: 255, or less where a Clip makes the grid narrower."""

    scale: float
    zero_point: int
    levels: int = 255


def input_grid(node: ir.Node) -> ActivationGrid | None:
    """The uint8 grid that the first input of a node is on, else None."""
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    while source is not None and source.op_type in _MOVES and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear":
        return None
    scale, zero_point = (constant(v) for v in inputs(source, 3)[1:])
    if scale is None or zero_point is None or scale.ndim or zero_point.dtype != "uint8":
        return None
    return ActivationGrid(float(scale), int(zero_point), _levels(source))


def _levels(dequantize: ir.Node) -> int:
    integers = dequantize.inputs[0]
    clip = integers.producer() if integers is not None else None
    high = constant(inputs(clip, 3)[2]) if clip is not None and clip.op_type == "Clip" else None
    return 255 if high is None else int(high)


def integer_grid(node: ir.Node) -> ActivationGrid | None:
    """The grid of the input where the node runs on an integer kernel, else None.

    A Conv must be quantized again right after; Gemm and MatMul may also return floats.
    """
    readers = [usage.node.op_type for usage in node.outputs[0].uses()]
    quantized = set(readers) == {"QuantizeLinear"} and not node.outputs[0].is_graph_output()
    if node.op_type in {"Gemm", "MatMul"} or (node.op_type == "Conv" and quantized):
        return input_grid(node)
    return None


def dynamic_quantizer(node: ir.Node) -> ir.Node | None:
    """The DynamicQuantizeLinear that rounds the first input of a node, else None."""
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    if source is None or source.op_type != "DequantizeLinear" or source.inputs[0] is None:
        return None
    quantizer = source.inputs[0].producer()
    return quantizer if quantizer and quantizer.op_type == "DynamicQuantizeLinear" else None


def readers(graph: ir.Graph, weight: str) -> list[ir.Node]:
    """The nodes that compute with an initializer, in order; a Transpose of it is looked through."""
    direct = {usage.node for usage in graph.initializers[weight].uses()}
    turned = {u.node for n in direct if n.op_type == "Transpose" for u in n.outputs[0].uses()}
    return [node for node in graph if node in (turned or direct)]


def reading_grids(graph: ir.Graph, weight: str) -> list[ActivationGrid]:
    """The input grids of the readers of an initializer, in order; [] unless all have one."""
    nodes = readers(graph, weight)
    grids = [integer_grid(node) for node in nodes]
    known = [grid for grid in grids if grid is not None]
    return known if len(known) == len(nodes) else []

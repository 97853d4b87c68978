"""Finds the nodes that ONNX Runtime runs on integer kernels, and the grids of their inputs."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from compressbench.export.graph import constant, inputs
from compressbench.export.lowering.moves import MOVES


class ActivationGrid(NamedTuple):
    """A uint8 grid of activations; `levels` is its largest integer, below 255 after a Clip."""

    scale: float
    zero_point: int
    levels: int = 255


def input_grid(node: ir.Node) -> ActivationGrid | None:
    """The uint8 grid of the first input of a node, after `moves`; None if it has none."""
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    if source is None or source.op_type != "DequantizeLinear":
        return None
    scale, zero_point = (constant(v) for v in inputs(source, 3)[1:])
    if scale is None or zero_point is None or scale.ndim or zero_point.dtype != "uint8":
        return None
    return ActivationGrid(float(scale), int(zero_point), _levels(source))


def _levels(dequantize: ir.Node) -> int:
    integers = dequantize.inputs[0]
    clip = integers.producer() if integers is not None else None
    while clip is not None and clip.op_type in MOVES and clip.inputs[0] is not None:
        clip = clip.inputs[0].producer()
    high = constant(inputs(clip, 3)[2]) if clip is not None and clip.op_type == "Clip" else None
    return 255 if high is None else int(high)


def integer_grid(node: ir.Node) -> ActivationGrid | None:
    """The input grid of a node that runs on an integer kernel, else None.

    The output of a Conv must be quantized again directly; Gemm and MatMul may also return floats.
    """
    readers = [usage.node.op_type for usage in node.outputs[0].uses()]
    quantized = set(readers) == {"QuantizeLinear"} and not node.outputs[0].is_graph_output()
    if node.op_type in {"Gemm", "MatMul"} or (node.op_type == "Conv" and quantized):
        return input_grid(node)
    return None


def dynamic_quantizer(node: ir.Node) -> ir.Node | None:
    """The DynamicQuantizeLinear that quantizes the first input of a node, else None."""
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    if source is None or source.op_type != "DequantizeLinear" or source.inputs[0] is None:
        return None
    quantizer = source.inputs[0].producer()
    return quantizer if quantizer and quantizer.op_type == "DynamicQuantizeLinear" else None


def readers(graph: ir.Graph, weight: str) -> list[ir.Node]:
    """The nodes that use an initializer, directly or through a Transpose, in graph order."""
    direct = {usage.node for usage in graph.initializers[weight].uses()}
    turned = {u.node for n in direct if n.op_type == "Transpose" for u in n.outputs[0].uses()}
    return [node for node in graph if node in (turned or direct)]


def reading_grids(graph: ir.Graph, weight: str) -> list[ActivationGrid]:
    """The input grids of the readers of an initializer, in order; [] if any reader has none."""
    nodes = readers(graph, weight)
    grids = [integer_grid(node) for node in nodes]
    known = [grid for grid in grids if grid is not None]
    return known if len(known) == len(nodes) else []

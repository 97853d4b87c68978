"""Lowers layers with dynamically quantized inputs to ConvInteger and MatMulInteger."""

from __future__ import annotations

import onnx_ir as ir

from compressbench.export.graph import (
    add_initializer,
    constant,
    inputs,
    insert_before,
    replace,
)
from compressbench.export.lowering.integer import dynamic_quantizer


def share_quantizers(graph: ir.Graph) -> None:
    """Merge the DynamicQuantizeLinear nodes that read the same value."""
    first: dict[ir.Value, ir.Node] = {}
    for node in list(graph):
        if node.op_type != "DynamicQuantizeLinear" or node.inputs[0] is None:
            continue
        kept = first.setdefault(node.inputs[0], node)
        if kept is not node:
            for old, new in zip(node.outputs, kept.outputs, strict=True):
                ir.convenience.replace_all_uses_with(old, new)
            graph.remove(node, safe=True)


def integer_product(
    node: ir.Node, codes: ir.Value, zero_point: ir.Value, scale: ir.Value, positions: int
) -> None:
    """Replace a Conv, Gemm or MatMul by integer product * (input scale * weight scale) + bias.

    `codes` are the uint8 weights, [O, I, ...] for a Conv and [I, O] otherwise; `scale` broadcasts
    over the output without its batch axis; `positions` is the number of kernel axes of a Conv, 0
    otherwise.
    """
    graph, quantizer = node.graph, dynamic_quantizer(node)
    assert isinstance(graph, ir.Graph)
    assert quantizer is not None
    quantized, step, input_zero_point = quantizer.outputs
    convolves = node.op_type == "Conv"
    attributes = {k: v.value for k, v in node.attributes.items()} if convolves else {}
    operator = "ConvInteger" if convolves else "MatMulInteger"
    operands = [quantized, codes, input_zero_point, zero_point]
    product = insert_before(node, operator, operands, attributes)
    exact = insert_before(node, "Cast", [product], {"to": int(ir.DataType.FLOAT)})
    unit = insert_before(node, "Mul", [step, scale])
    result = insert_before(node, "Mul", [exact, unit])
    bias = inputs(node, 3)[2]
    values = constant(bias)
    if bias is not None and values is not None:
        name, shaped = f"{bias.name}.shaped", values.reshape(-1, *[1] * positions)
        known = graph.initializers.get(name)  # of a layer that is called twice
        shifted = add_initializer(graph, name, shaped) if known is None else known
        result = insert_before(node, "Add", [result, shifted])
    replace(node, result)

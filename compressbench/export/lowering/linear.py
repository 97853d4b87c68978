"""Turns a 2-D MatMul with a transposed weight into a Gemm, which has integer kernels."""

from __future__ import annotations

import onnx_ir as ir

from compressbench.export.graph import attribute, drop, insert_before, replace


def matmul_to_gemm(graph: ir.Graph) -> None:
    """MatMul(x, Transpose(W)) -> Gemm(x, W, transB=1) if x is [B, I]."""
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        values, weight = node.inputs
        source = weight.producer() if weight is not None else None
        if source is None or not is_transposed_weight(source) or _rank(values) != 2:
            continue
        replace(node, insert_before(node, "Gemm", [values, source.inputs[0]], {"transB": 1}))
        if not source.outputs[0].uses():
            drop(source)


def is_transposed_weight(node: ir.Node) -> bool:
    """Whether `node` swaps the two axes of an initializer."""
    value = node.inputs[0] if node.inputs else None
    swaps = node.op_type == "Transpose" and list(attribute(node, "perm", [1, 0])) == [1, 0]
    return swaps and value is not None and value.is_initializer() and _rank(value) == 2


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)

"""Turns a mean over height and width into GlobalAveragePool, which has an integer kernel."""

from __future__ import annotations

import onnx_ir as ir

from compressbench.export.graph import attribute, constant, inputs, insert_before, replace


def mean_to_pool(graph: ir.Graph) -> None:
    """ReduceMean over the last two axes of [B, C, H, W] -> GlobalAveragePool (then Flatten)."""
    for node in list(graph):
        if node.op_type != "ReduceMean" or node.inputs[0] is None:
            continue
        axes = constant(inputs(node, 2)[1])
        shape = node.inputs[0].shape
        if axes is None or shape is None or len(shape) != 4 or {int(a) % 4 for a in axes} != {2, 3}:
            continue
        pooled = insert_before(node, "GlobalAveragePool", [node.inputs[0]])
        if attribute(node, "keepdims", 1) == 0:
            pooled = insert_before(node, "Flatten", [pooled])
        replace(node, pooled)

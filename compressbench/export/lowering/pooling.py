"""Turns a mean over height and width into GlobalAveragePool, which has an integer kernel."""

from __future__ import annotations

import onnx_ir as ir

from compressbench.export.graph import attribute, constant, inputs, insert_before, replace


def mean_to_pool(graph: ir.Graph) -> None:
    """ReduceMean over the last two axes of [B, C, H, W] -> GlobalAveragePool (then Flatten)."""
    for node in list(graph):
        if node.op_type != "ReduceMean" or not _is_of_images(node):
            continue
        pooled = insert_before(node, "GlobalAveragePool", [node.inputs[0]])
        if attribute(node, "keepdims", 1) == 0:
            pooled = insert_before(node, "Flatten", [pooled])
        replace(node, pooled)


def _is_of_images(node: ir.Node) -> bool:
    """Whether a ReduceMean is over the last two of four axes, in the type that the kernel takes."""
    values, axes = node.inputs[0], constant(inputs(node, 2)[1])
    if axes is None or values is None or values.shape is None or len(values.shape) != 4:
        return False
    return values.dtype == ir.DataType.FLOAT and {int(a) % 4 for a in axes} == {2, 3}

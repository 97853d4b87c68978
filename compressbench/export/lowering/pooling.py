"""Turns a mean over height and width into GlobalAveragePool, which has an integer kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressbench.export.graph import (
    add_initializer,
    attribute,
    constant,
    inputs,
    insert_before,
    replace,
)


def mean_to_pool(graph: ir.Graph) -> None:
    """ReduceMean over the last two axes of [B, C, H, W] -> GlobalAveragePool (then Reshape).

    ONNX Runtime moves a QuantizeLinear in front of a Reshape, next to the pooling, but not in front
    of a Flatten.
    """
    for node in list(graph):
        if node.op_type != "ReduceMean" or not _is_of_images(node):
            continue
        pooled = insert_before(node, "GlobalAveragePool", [node.inputs[0]])
        if attribute(node, "keepdims", 1) == 0:
            pooled = insert_before(node, "Reshape", [pooled, _flat(graph)])
        replace(node, pooled)


def _flat(graph: ir.Graph) -> ir.Value:
    """The shape [B, C] of a pooled [B, C, 1, 1], as Reshape takes it."""
    name = "pooled.shape"
    return graph.initializers.get(name) or add_initializer(graph, name, np.array([0, -1], np.int64))


def _is_of_images(node: ir.Node) -> bool:
    """Whether a ReduceMean is over the last two of four axes, in the type that the kernel takes."""
    values, axes = node.inputs[0], constant(inputs(node, 2)[1])
    if axes is None or values is None or values.shape is None or len(values.shape) != 4:
        return False
    return values.dtype == ir.DataType.FLOAT and {int(a) % 4 for a in axes} == {2, 3}

"""Folds constants and removes operations without effect."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compressbench.export.graph import attribute, constant, inputs, replace
from compressbench.export.lowering.linear import is_transposed_weight


def fold_constants(model: ir.Model, weights: Collection[str]) -> None:
    """Fold constants into initializers, except computations on `weights` (initializer names)."""
    from onnxscript.optimizer import fold_constants_ir

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type != "Shape" and any(
            v is not None and v.name in weights for v in node.inputs
        ):
            return False
        # Fold a transpose only if all readers transpose: else the weight would be stored twice
        if is_transposed_weight(node) and node.inputs[0] is not None:
            return all(is_transposed_weight(u.node) for u in node.inputs[0].uses())
        return None

    fold_constants_ir(model, should_fold=should_fold)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    drop_no_ops(model.graph)
    drop_unused(model)


def drop_no_ops(graph: ir.Graph) -> None:
    """Remove Dropout, and Cast, Transpose and Concat nodes that return their input unchanged."""
    for node in list(graph):
        value = node.inputs[0] if node.inputs else None
        if value is not None and _is_no_op(node, value) and not node.outputs[0].is_graph_output():
            replace(node, value)


def _is_no_op(node: ir.Node, value: ir.Value) -> bool:
    match node.op_type:
        case "Dropout":
            return True  # exported in eval mode
        case "Cast":
            return value.dtype is not None and value.dtype == attribute(node, "to", None)
        case "Transpose":
            perm = list(attribute(node, "perm", [-1]))
            return perm == list(range(len(perm)))
        case "Concat":
            return len(node.inputs) == 1
        case _:
            return False


def drop_zero_biases(graph: ir.Graph) -> None:
    """Remove biases that are all zero: the exporter writes them for layers without a bias."""
    for node in graph:
        if node.op_type in {"Conv", "ConvTranspose", "Gemm"} and len(node.inputs) == 3:
            bias = constant(inputs(node, 3)[2])
            if bias is not None and not np.any(bias):
                node.resize_inputs(2)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing uses."""
    common.RemoveUnusedNodesPass()(model)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            model.graph.initializers.pop(name)

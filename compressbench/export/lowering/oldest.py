"""Converts the operators of opset 18 that have another form in opset 17."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compressbench.core.errors import UserError
from compressbench.export.graph import constant, inputs
from compressbench.export.opsets import NATIVE, OLDEST


def lower_to_oldest(model: ir.Model) -> None:
    """Convert from opset 18 to 17. Raises UserError for an operator that opset 17 does not have."""
    for node in model.graph.all_nodes():
        since = onnx.defs.get_schema(node.op_type, NATIVE, node.domain).since_version
        if since <= OLDEST:
            continue
        if node.op_type.startswith("Reduce"):
            _axes_to_attribute(node)
        elif not _is_the_same(node):
            raise UserError(f"opset must be at least {NATIVE} for {node.op_type}, got {OLDEST}")
    model.opset_imports[""] = OLDEST


def _axes_to_attribute(node: ir.Node) -> None:
    axes = constant(inputs(node, 2)[1])
    if len(node.inputs) > 1:
        if axes is None:
            raise UserError(f"opset must be at least {NATIVE} for computed axes, got {OLDEST}")
        node.resize_inputs(1)
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes.reshape(-1)])
    node.attributes.pop("noop_with_empty_axes", None)


def _is_the_same(node: ir.Node) -> bool:
    """Whether a node uses nothing that opset 18 added."""
    match node.op_type:
        case "Split":
            return "num_outputs" not in node.attributes
        case "Pad":
            return len(node.inputs) < 4
        case _:
            return False

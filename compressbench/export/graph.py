"""Reads and rewrites small patterns of an onnx_ir graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of a constant value; None if the value depends on the model's input."""
    tensor = None if value is None else value.const_value
    return None if tensor is None else np.asarray(tensor.numpy())


def inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    """The first `count` inputs of a node, None for those it omits."""
    return [*node.inputs[:count], *[None] * (count - len(node.inputs))]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute of a node, or `default` if it is not set."""
    value = node.attributes.get(name)
    return default if value is None else value.value


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`; None if several do, or if it is an output of the graph."""
    nodes = [usage.node for usage in value.uses()]
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def add_initializer(graph: ir.Graph, name: str, tensor: NDArray[Any]) -> ir.Value:
    """Add an initializer, replacing any of the same name."""
    value = ir.Value(name=name, const_value=ir.tensor(tensor, name=name))
    graph.initializers.pop(name, None)
    graph.initializers[name] = value
    return value


def insert_before(
    anchor: ir.Node,
    operator: str,
    operands: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str] | None = None,
) -> ir.Value:
    """Insert a node before `anchor` and return its only output."""
    node = ir.node(operator, operands, attributes or {})
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    return node.outputs[0]


def replace(node: ir.Node, value: ir.Value) -> None:
    """Replace all uses of the output of `node` by `value` and remove the node."""
    if value.type is None:
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
    drop(node)


def drop(node: ir.Node) -> None:
    """Remove a node whose outputs are not used."""
    assert node.graph is not None
    node.graph.remove(node, safe=True)

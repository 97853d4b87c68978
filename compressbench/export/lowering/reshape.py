"""Replaces target shapes of Reshape that are computed at run time by constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressbench.export.graph import add_initializer, constant, inputs


def static_shapes(graph: ir.Graph) -> None:
    """Reshape(x, Concat(batch, 8, 9)) -> Reshape(x, [-1, 8, 9]) if only one part is dynamic."""
    for number, node in enumerate(list(graph)):
        if node.op_type != "Reshape":
            continue
        parts = _parts(inputs(node, 2)[1])
        if parts is None or parts.count(-1) != 1 or 0 in parts:
            continue
        shape = add_initializer(graph, f"shape.{number}", np.array(parts, dtype=np.int64))
        node.replace_input_with(1, shape)


def _parts(shape: ir.Value | None) -> list[int] | None:
    """The entries of a computed shape, -1 for an entry that depends on the input."""
    concat = shape.producer() if shape is not None else None
    if concat is None or concat.op_type != "Concat":
        return None
    parts: list[int] = []
    for value in concat.inputs:
        known = constant(value)
        if known is None and not _is_single(value):
            return None
        parts.extend([-1] if known is None else [int(v) for v in known.reshape(-1)])
    return parts


def _is_single(value: ir.Value | None) -> bool:
    """Whether a value is one number in a vector; the exporter writes Reshape(number, [-1])."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in {"Reshape", "Unsqueeze"}:
        return False
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source is not None and source.op_type in {"Squeeze", "Gather"}

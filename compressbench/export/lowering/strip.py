"""Removes what a runtime does not need: long names, shapes, metadata, defaults, duplicates."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import count, product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

_IMPLIED: dict[str, dict[str, Any]] = {  # assumed by the specification, but not a schema default
    "Conv": {"pads": 0, "strides": 1, "dilations": 1},
    "ConvInteger": {"pads": 0, "strides": 1, "dilations": 1},
    "ConvTranspose": {"pads": 0, "strides": 1, "dilations": 1, "output_padding": 0},
    "MaxPool": {"pads": 0, "strides": 1, "dilations": 1},
    "AveragePool": {"pads": 0, "strides": 1, "dilations": 1},
}


def strip(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf; inputs and outputs keep their names, all others are shortened."""
    common.DeduplicateInitializersPass(size_limit=2**62)(model)
    _drop_defaults(model.graph, model.opset_imports[""])
    _shorten(model.graph, model.opset_imports[""])
    proto = ir.to_proto(model)
    _clear(proto)
    return proto


def _drop_defaults(graph: ir.Graph, opset: int) -> None:
    for node in graph.all_nodes():
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        for name, found in list(node.attributes.items()):
            default = _default(schema, name)
            if _is_implied(node.op_type, name, found.value) or default == _plain(found.value):
                node.attributes.pop(name)


def _default(schema: onnx.defs.OpSchema, name: str) -> Any:
    declared = schema.attributes.get(name)
    if declared is None or not declared.default_value.type:
        return None
    return _plain(onnx.helper.get_attribute_value(declared.default_value))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        return float(np.float32(value))  # protobuf stores float32
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _is_implied(operator: str, name: str, value: Any) -> bool:
    if operator in {"Conv", "ConvInteger"} and name == "kernel_shape":
        return True  # the weight has it
    expected = _IMPLIED.get(operator, {}).get(name)
    return expected is not None and set(value) == {expected}


def _shorten(graph: ir.Graph, opset: int) -> None:
    """Rename values in order of use, so that the bytes do not depend on the exporter's counters."""
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    names = (name for name in _short_names() if name not in kept)
    initializers: dict[ir.Value, None] = {}
    for node in graph.all_nodes():
        node.name = ""
        initializers |= {v: None for v in node.inputs if v is not None and v.is_initializer()}
    initializers |= dict.fromkeys(graph.initializers.values())
    graph.initializers.clear()
    for value in sorted(initializers, key=_alike):
        value.name = next(names)
        graph.initializers[value.name] = value
    for node in graph.all_nodes():
        for position, value in enumerate(node.outputs):
            if value.name not in kept:
                omitted = not value.uses() and _is_optional(node, position, opset)
                value.name = "" if omitted else next(names)


def _is_optional(node: ir.Node, position: int, opset: int) -> bool:
    """Whether a node may leave out an output; ONNX Runtime crashes where a Split does."""
    declared = onnx.defs.get_schema(node.op_type, opset, node.domain).outputs
    option = declared[min(position, len(declared) - 1)].option
    return bool(option == onnx.defs.OpSchema.FormalParameterOption.Optional)


def _alike(value: ir.Value) -> tuple[int, int, int]:
    """Sort key that groups tensors by type, narrow types and large tensors first.

    Compressors adapt to a type: low-bit codes between floats would take 10 % more bytes.
    """
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype.bitwidth, tensor.dtype.value, -tensor.nbytes


def _short_names() -> Iterator[str]:
    letters = string.ascii_letters
    for length in count(1):
        yield from ("".join(chosen) for chosen in product(letters, repeat=length))


def _clear(proto: onnx.ModelProto) -> None:
    for field in ("metadata_props", "doc_string", "domain", "model_version", "functions"):
        proto.ClearField(field)
    graph = proto.graph
    for field in ("value_info", "metadata_props", "doc_string", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "model"
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")

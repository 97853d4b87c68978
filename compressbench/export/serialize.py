"""Serializes an ONNX model with its fields in the order that compresses best."""

from __future__ import annotations

import onnx


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Serialize `model` with its tensors first; protobuf allows fields in any order.

    zstd adapts to the data that comes first: 3-bit codes take 10 % more bytes after the nodes.
    """
    tensors = onnx.GraphProto(initializer=model.graph.initializer)
    nodes = onnx.GraphProto()
    nodes.CopyFrom(model.graph)
    nodes.ClearField("initializer")
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    graph = _bytes(tensors) + _bytes(nodes)
    number = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
    return bytes([number << 3 | 2]) + _varint(len(graph)) + graph + _bytes(rest)


def _bytes(message: onnx.GraphProto | onnx.ModelProto) -> bytes:
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def _varint(number: int) -> bytes:
    """A protobuf varint: seven bits per byte, lowest first; the high bit marks that more follow."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])

"""Protobuf in the order that compresses best."""

from __future__ import annotations

import onnx


def to_bytes(model: onnx.ModelProto) -> bytes:
    """`model` with its tensors in front of everything else; fields may stand in any order.

    zstd learns the statistics of what comes first: 3-bit codes cost a tenth more after the nodes.
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
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])

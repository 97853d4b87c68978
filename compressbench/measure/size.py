"""How large a model is: bytes on disk, bytes over the air, numbers, bits at nominal width."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from compressbench.artifact import activation_grid, weight_bits, zero_point
from compressbench.core import Artifact, CheckFailedError

if TYPE_CHECKING:
    import onnx

ZSTD_LEVEL = 19


def shipped_files(onnx_path: Path) -> list[Path]:
    """The .onnx file and the files it keeps tensors in, if any."""
    import onnx

    tensors = onnx.load(onnx_path, load_external_data=False).graph.initializer
    external = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    return [onnx_path, *(onnx_path.parent / name for name in sorted(external))]


def onnx_bytes(onnx_path: Path) -> int:
    """Bytes of all files that ship."""
    return sum(path.stat().st_size for path in shipped_files(onnx_path))


def download_bytes(onnx_path: Path) -> int:
    """Bytes of the files that ship under zstd level 19, which must give them back exactly."""
    import zstandard

    total = 0
    for path in shipped_files(onnx_path):
        content = path.read_bytes()
        packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)
        if zstandard.ZstdDecompressor().decompress(packed) != content:
            raise CheckFailedError(f"{path.name}: zstd does not give back the same bytes")
        total += len(packed)
    return total


def nonzero(model: nn.Module) -> int:
    """Parameters of the model that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def theoretical_bits(artifact: Artifact, onnx_path: Path) -> int:
    """Quantized weights, and zero points of asymmetric grids and of activations, at the width of
    their grid or code; all else (scales, codebooks, biases, float weights with their zeros) as
    stored. What only the storage needs is not counted.
    """
    import onnx
    from onnx_ir import DataType

    graph = onnx.load(onnx_path).graph
    storage, floats = _packed(graph)
    stored = 32 * floats
    for tensor in graph.initializer:
        kind = DataType(tensor.data_type)
        if tensor.name not in storage and not (kind.is_integer() and kind.bitwidth <= 8):
            stored += math.prod(tensor.dims) * kind.bitwidth
    bits = weight_bits(artifact.edits)
    layers = {id(artifact.model.get_parameter(f"{name}.weight")): name for name in bits}
    sites = activation_grid(artifact.edits)
    if sites is not None and not sites.get("dynamic", False):
        stored += len(sites["sites"]) * int(sites["bits"])
    return stored + sum(  # a tied weight once
        _codes(artifact.model.get_submodule(name)) * bits[name] for name in layers.values()
    )


def _packed(graph: onnx.GraphProto) -> tuple[set[str], int]:
    """Initializers from which tensors that are mostly zero are computed (`export.lowering.sparse`),
    and how many floats these tensors have.
    """
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    bits, dense = set[str](), dict[str, bool]()  # values on the way; dense ones are float or not
    names, floats = set[str](), 0
    for node in graph.node:
        whole = next((name for name in node.input if name in dense), None)
        if whole is None and node.op_type != "BitwiseAnd" and not bits & set(node.input):
            continue
        names |= {name for name in node.input if name in tensors}
        if whole is None and node.op_type == "Gather":
            table = tensors.get(node.input[0])
            dense[node.output[0]] = table is not None and table.data_type == TensorProto.FLOAT
        elif whole is None:
            bits |= set(node.output)
        elif node.op_type == "Split":
            dense |= dict.fromkeys(filter(None, node.output), dense[whole])
        elif dense[whole]:
            floats += math.prod(numpy_helper.to_array(tensors[node.input[1]]).tolist())
    return names, floats


def _codes(layer: nn.Module) -> int:
    """Integers of a quantized layer: its weights and its zero points."""
    offset = zero_point(layer)
    return layer.get_parameter("weight").numel() + (0 if offset is None else offset.numel())

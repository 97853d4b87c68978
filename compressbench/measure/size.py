"""How large a model is: bytes on disk, bytes over the air, numbers, bits at nominal width."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from compressbench.core.download import compressed
from compressbench.core.edits import activation_grid, weight_bits, zero_point
from compressbench.core.types import Artifact


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
    return sum(len(compressed(p.read_bytes(), p.name)) for p in shipped_files(onnx_path))


def nonzero(model: nn.Module) -> int:
    """Parameters of the model that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def theoretical_bits(artifact: Artifact, onnx_path: Path) -> int:
    """Quantized weights, and zero points of asymmetric grids and of activations, at the width of
    their grid or code; all else (scales, codebooks, biases) as stored. What only the storage needs
    is not counted.
    """
    import onnx
    from onnx_ir import DataType

    stored = 0
    for tensor in onnx.load(onnx_path).graph.initializer:
        kind = DataType(tensor.data_type)
        if not (kind.is_integer() and kind.bitwidth <= 8):
            stored += math.prod(tensor.dims) * kind.bitwidth
    bits = weight_bits(artifact.edits)
    layers = {id(artifact.model.get_parameter(f"{name}.weight")): name for name in bits}
    sites = activation_grid(artifact.edits)
    if sites is not None and not sites.get("dynamic", False):
        stored += len(sites["sites"]) * int(sites["bits"])
    return stored + sum(  # a tied weight once
        _codes(artifact.model.get_submodule(name)) * bits[name] for name in layers.values()
    )


def _codes(layer: nn.Module) -> int:
    """Integers of a quantized layer: its weights and its zero points."""
    offset = zero_point(layer)
    return layer.get_parameter("weight").numel() + (0 if offset is None else offset.numel())

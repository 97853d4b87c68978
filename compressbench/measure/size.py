"""Measures model size: bytes on disk, bytes to download, parameters, and theoretical bits."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from compressbench.core.download import compressed
from compressbench.core.edits import activation_grid, weight_bits, zero_point
from compressbench.core.types import Artifact


def onnx_bytes(onnx_path: Path) -> int:
    """Bytes of the file, which holds all of its tensors (see `check_self_contained`)."""
    return onnx_path.stat().st_size


def download_bytes(onnx_path: Path) -> int:
    """Bytes of the file compressed with zstd level 19.

    Raises CheckFailedError if decompressing it does not reproduce the same bytes.
    """
    return len(compressed(onnx_path.read_bytes(), onnx_path.name))


def nonzero(model: nn.Module) -> int:
    """Number of nonzero parameters of the model."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def theoretical_bits(artifact: Artifact, onnx_path: Path) -> int:
    """Bits of the model if every quantized weight took exactly the bits of its grid or code.

    Zero points of asymmetric grids and of activations count with the bits of their grid; scales,
    codebooks and biases count as stored. Padding and offsets of the storage do not count.
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
    """Number of integers of a quantized layer: its weights and zero points."""
    offset = zero_point(layer)
    return layer.get_parameter("weight").numel() + (0 if offset is None else offset.numel())

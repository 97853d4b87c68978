"""Compares the graph that ONNX Runtime runs with the one that was meant.

ONNX Runtime rewrites a graph when it loads a file. It may round float weights to 8 bits on its own,
or find no integer kernel where one was expected; both would make the report wrong.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compressbench.core.disk_full import DiskFullError, explained_when_full
from compressbench.core.errors import CheckFailedError

# Positions of the weight, its zero point and its scale among the inputs of an operator; the scale
# of ConvInteger and MatMulInteger is applied by other nodes.
_INTEGER: Mapping[str, tuple[int, int, int | None]] = {
    "QLinearConv": (3, 5, 4),
    "QLinearMatMul": (3, 5, 4),
    "QGemm": (3, 5, 4),
    "ConvInteger": (1, 3, None),
    "MatMulInteger": (1, 3, None),
    "MatMulIntegerToFloat": (1, 5, 3),
    "DynamicQuantizeMatMul": (1, 3, 2),
}
_FLOAT = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
_TRANSPOSED = {
    "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMul",
    "FusedMatMul",
}  # fmt: skip


@dataclass(frozen=True)
class Meant:
    """A layer that is to run on integer kernels, with its integers [O, I, ...] and scales, [] or
    [O]; `calls` nodes use it.
    """

    layer: str
    steps: NDArray[np.int16]
    scale: NDArray[np.float64]
    calls: int


@dataclass(frozen=True)
class Found:
    """A node of the optimized graph with constant weights of 8 bits: its integers [O, I, ...], less
    the zero point, and its scales, None if other nodes apply them. `integer` is whether the
    operator computes with integers.
    """

    operator: str
    integer: bool
    steps: NDArray[np.int16]
    scale: NDArray[np.float32] | None


def optimized_graph(path: Path) -> onnx.GraphProto:
    """The graph of a file as ONNX Runtime optimizes it on this machine, with one thread.

    Raises CheckFailedError if ONNX Runtime cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            with explained_when_full(Path(folder), path.stat().st_size):
                onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except DiskFullError:
            raise
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            raise CheckFailedError(f"{path.name}: ONNX Runtime cannot load it: {error}") from error
        return onnx.load(options.optimized_model_filepath).graph


def check_kernels(graph: onnx.GraphProto, meant: Sequence[Meant]) -> None:
    """Raise CheckFailedError unless the layers `meant`, and no others, have weights of 8 bits in
    the optimized `graph`, on integer kernels, with their integers and scales.
    """
    found = weights_of_8_bits(graph)
    runs = Counter(_digest(kernel.steps) for kernel in found if kernel.integer)
    wanted: Counter[str] = Counter()
    for layer in meant:
        wanted[_digest(layer.steps)] += layer.calls
    for layer in meant:
        if runs[_digest(layer.steps)] < wanted[_digest(layer.steps)]:
            raise CheckFailedError(
                f"{layer.layer}: ONNX Runtime does not compute it on an integer kernel with the "
                "weights that were exported"
            )
    for kernel in found:
        if not any(_is_of(kernel, layer) for layer in meant):
            count = "its scale" if kernel.scale is None else f"{kernel.scale.size} scale(s)"
            raise CheckFailedError(
                f"ONNX Runtime rounds the weights {list(kernel.steps.shape)} of a "
                f"{kernel.operator} to 8 bits with {count}, which the export did not mean"
            )


def _is_of(kernel: Found, layer: Meant) -> bool:
    scale = layer.scale.astype(np.float32).reshape(-1)
    same_scale = kernel.scale is None or np.array_equal(kernel.scale.reshape(-1), scale)
    return same_scale and np.array_equal(kernel.steps, layer.steps)


def _digest(steps: NDArray[np.int16]) -> str:
    return sha256(f"{steps.shape}".encode() + np.ascontiguousarray(steps).tobytes()).hexdigest()


def weights_of_8_bits(graph: onnx.GraphProto) -> list[Found]:
    """The nodes of an optimized graph that have constant weights of 8 bits."""
    reader = _Reader(graph)
    return [found for node in graph.node if (found := reader.read(node)) is not None]


class _Reader:
    """Looks up the constants of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}

    def read(self, node: onnx.NodeProto) -> Found | None:
        if node.op_type in _INTEGER:
            return self._found(node, node, _INTEGER[node.op_type], integer=True)
        source = self.producers.get(node.input[1]) if node.op_type in _FLOAT else None
        if source is None or source.op_type != "DequantizeLinear":
            return None
        return self._found(node, source, (0, 2, 1), integer=False)

    def _found(
        self,
        node: onnx.NodeProto,
        holder: onnx.NodeProto,
        places: tuple[int, int, int | None],
        *,
        integer: bool,
    ) -> Found | None:
        """What `node` computes with the weight among the inputs of `holder`."""
        codes, zero_point, scale = (self._constant(holder, place) for place in places)
        if codes is None or codes.dtype.itemsize != 1:
            return None
        steps = np.swapaxes(codes, -1, -2) if _is_transposed(node) else codes
        offset = np.zeros(1) if zero_point is None else zero_point
        shaped = offset.reshape(-1, *[1] * (steps.ndim - 1)).astype(np.int16)
        return Found(node.op_type, integer, steps.astype(np.int16) - shaped, scale)

    def _constant(self, node: onnx.NodeProto, place: int | None) -> NDArray[Any] | None:
        if place is None or place >= len(node.input) or node.input[place] not in self.constants:
            return None
        return numpy_helper.to_array(self.constants[node.input[place]])


def _is_transposed(node: onnx.NodeProto) -> bool:
    """Whether an operator reads its weight as [I, O]."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return node.op_type in _TRANSPOSED or (node.op_type in {"Gemm", "QGemm"} and not turned)

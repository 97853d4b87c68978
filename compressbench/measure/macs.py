"""Counts the multiply-accumulates of the exported graph for one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

COUNTED = {"Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"}


def macs(onnx_path: Path) -> int:
    """Multiply-accumulates of all Conv, ConvTranspose, Gemm and MatMul nodes at batch size 1.

    Integer forms of these operators are included; biases are not counted.

    - Conv: output elements * input channels / groups * kernel size.
    - ConvTranspose: input elements * output channels / groups * kernel size.
    - Gemm, MatMul: output elements * inner dimension.
    """
    import onnx

    graph = onnx.load(onnx_path).graph
    nodes = [node for node in graph.node if node.op_type in COUNTED]
    names = {name for node in nodes for name in (*node.input[:2], node.output[0])}
    shapes = _shapes(onnx_path, names)
    return sum(_count(node, shapes) for node in nodes)


def _count(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    first, weight = (shapes[name] for name in node.input[:2])
    output = math.prod(shapes[node.output[0]])
    if node.op_type in {"Conv", "ConvInteger"}:  # weight [out, in / groups, ...]
        return output * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight [in, out / groups, ...]
        return math.prod(first) * math.prod(weight[1:])
    transposed = node.op_type == "Gemm" and any(
        a.name == "transA" and a.i == 1 for a in node.attribute
    )
    return output * first[0 if transposed else -1]


def _shapes(onnx_path: Path, names: set[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the named values, found by running ONNX Runtime on one sample of zeros."""
    import numpy as np
    import onnx
    import onnxruntime

    from compressbench.measure.session import open_session, options

    model = onnx.load(onnx_path)
    known = {t.name: tuple(t.dims) for t in model.graph.initializer if t.name in names}
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    wanted = sorted(names - known.keys() - given)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in wanted)
    chosen = options()
    chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(model.SerializeToString(), chosen)
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feed: dict[str, Any] = {
        i.name: np.zeros([1, *i.shape[1:]], types[i.type]) for i in session.get_inputs()
    }
    asked = [output.name for output in session.get_outputs()]
    values = dict(zip(asked, session.run(asked, feed), strict=True)) | feed
    return known | {name: np.shape(values[name]) for name in names - known.keys()}

"""Folds BatchNormalization into the preceding Conv or Gemm: γ(Wx + b - μ)/σ + β."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import (
    add_initializer,
    attribute,
    constant,
    inputs,
    only_consumer,
    replace,
)
from compressbench.export.grids import Grids, WeightGrid


def fold_batchnorm(graph: ir.Graph, grids: Grids) -> dict[str, WeightGrid]:
    """Fold each BatchNormalization that alone reads a Conv or Gemm; return the new grids.

    A quantized weight keeps its integers and gets new scales (`WeightGrid.times`); a float weight
    is multiplied. Not folded: nodes that share their weight, and a BatchNormalization elsewhere.
    """
    folded = dict(grids)
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.inputs[0] is None:
            continue
        source = node.inputs[0].producer()
        if source is None or not _folds(source):
            continue
        factor, shift = _affine(node)
        weight, bias = inputs(source, 3)[1:]
        assert weight is not None and weight.name is not None
        if weight.name in folded:
            folded[weight.name] = folded[weight.name].times(factor)
        else:
            _scale_weight(graph, weight, factor)
        _set_bias(graph, source, constant(bias), factor, shift)
        replace(node, source.outputs[0])
    return folded


def _folds(node: ir.Node) -> bool:
    weight, bias = inputs(node, 3)[1:]
    if not is_layer(node) or weight is None or not weight.is_initializer():
        return False
    alone = len(weight.uses()) == 1 and only_consumer(node.outputs[0]) is not None
    return alone and (bias is None or constant(bias) is not None)


def is_layer(node: ir.Node) -> bool:
    """Whether a node is a Conv, or a Gemm in the exporter's form of a linear layer: x @ W.T + b."""
    if node.op_type != "Gemm":
        return node.op_type == "Conv"
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    default = {**expected, "transB": 0}
    return all(attribute(node, k, default[k]) == v for k, v in expected.items())


def _affine(node: ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and shift of a BatchNormalization, y = factor * x + shift, float64 [C]."""
    gamma, beta, mean, variance = (_double(constant(v)) for v in node.inputs[1:5])
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, beta - factor * mean


def _double(values: NDArray[Any] | None) -> NDArray[np.float64]:
    assert values is not None
    return values.astype(np.float64)


def _scale_weight(graph: ir.Graph, weight: ir.Value, factor: NDArray[np.float64]) -> None:
    values = _double(constant(weight))
    scaled = values * factor.reshape(-1, *[1] * (values.ndim - 1))
    assert weight.name is not None
    new = add_initializer(graph, weight.name, scaled.astype(np.float32))
    weight.replace_all_uses_with(new)


def _set_bias(
    graph: ir.Graph,
    node: ir.Node,
    bias: NDArray[Any] | None,
    factor: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> None:
    new = shift if bias is None else shift + factor * bias
    assert node.inputs[1] is not None
    value = add_initializer(graph, f"{node.inputs[1].name}.bias", new.astype(np.float32))
    node.resize_inputs(3)
    node.replace_input_with(2, value)

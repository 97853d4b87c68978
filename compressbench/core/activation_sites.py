"""Finds the sites where an integer runtime rounds activations: outputs of torch functions.

The model is run once; a site follows a convolution with its BatchNorm and clamp-like activation,
an addition, and so on. A site is stored as (function, index of the call), so any model whose
sequence of calls does not depend on its input can be quantized.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from compressbench.core.calls import Call, trace

_FUSES_BATCHNORM = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear"}
_CLAMPS = {"relu", "relu6", "hardtanh", "clamp", "clip"}
_PRODUCERS = _FUSES_BATCHNORM | _CLAMPS | {
    "add", "radd", "sub", "mul", "rmul", "div", "cat", "concat", "concatenate", "batch_norm",
    "layer_norm", "group_norm", "mean", "avg_pool2d", "adaptive_avg_pool2d", "matmul", "bmm",
    "sigmoid", "silu", "hardsigmoid", "hardswish", "gelu", "tanh", "softmax", "leaky_relu", "elu",
    "prelu", "rsub", "rdiv", "scaled_dot_product_attention", "interpolate",
}  # fmt: skip


def find_sites(model: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    """The sites to quantize, in call order: dicts of `function`, `index` and `layer`.

    The first site is the model's input, unless it consists of ids. The model's output stays float.
    """
    calls, last = trace(model, example)
    chosen = ({0} if example.is_floating_point() else set()) | {
        _end_of_chain(calls, position)
        for position, call in enumerate(calls)
        if call.function in _PRODUCERS
    }
    return [
        {"function": c.function, "index": c.index, "layer": c.layer}
        for position, c in enumerate(calls)
        if position in chosen and position != last
    ]


def find_readers(model: nn.Module, example: Tensor, layers: Iterable[str]) -> list[dict[str, Any]]:
    """The calls of convolutions and linear functions that use a weight of `layers`, in the form of
    `find_sites`.
    """
    weights = {id(model.get_parameter(f"{name}.weight")) for name in layers}
    calls, _ = trace(model, example)
    return [
        {"function": c.function, "index": c.index, "layer": c.layer}
        for c in calls
        if c.function in _FUSES_BATCHNORM and not weights.isdisjoint(c.parameters)
    ]


def _end_of_chain(calls: list[Call], position: int) -> int:
    """Follow conv -> batch_norm -> relu, which a runtime computes in one integer kernel."""
    call = calls[position]
    if len(call.consumers) != 1:
        return position
    follower = calls[call.consumers[0]]
    fuses = call.function in _FUSES_BATCHNORM and follower.function == "batch_norm"
    if fuses or (follower.function in _CLAMPS and call.function not in _CLAMPS):
        return _end_of_chain(calls, call.consumers[0])
    return position

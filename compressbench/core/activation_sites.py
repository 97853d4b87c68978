"""Finds the sites where an integer runtime rounds activations: outputs of torch functions.

The model is run once; a site follows a convolution with its BatchNorm and clamp-like activation,
an addition, and so on. A site is stored as in `call_stack.Site`, so any model whose calls do not
depend on its input can be quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.calls import UNCOUNTED, Call, trace

_FUSES_BATCHNORM = {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear"}
_SUMS = {"add", "radd", "sub", "rsub"}
_REPLACE = {"where", "masked_fill"}
_NEAR_ZERO = {"sqrt", "rsqrt", "log", "log2", "log10", "reciprocal", "rdiv", "rtruediv"}
_QUOTIENTS = {"div", "truediv", "true_divide", "divide"}
_CLAMPS = {"relu", "relu6", "hardtanh", "clamp", "clip"}
_PRODUCERS = _FUSES_BATCHNORM | _CLAMPS | {
    "add", "radd", "sub", "mul", "rmul", "div", "cat", "concat", "concatenate", "batch_norm",
    "layer_norm", "group_norm", "mean", "avg_pool2d", "adaptive_avg_pool2d", "matmul", "bmm",
    "sigmoid", "silu", "hardsigmoid", "hardswish", "gelu", "tanh", "softmax", "leaky_relu", "elu",
    "prelu", "rsub", "rdiv", "scaled_dot_product_attention", "interpolate",
}  # fmt: skip


@dataclass(frozen=True)
class TracedSite:
    """A site and where its values come from.

    `description` is its entry in an edit, `before` the numbers of the sites that its values come
    from directly. `adds` is whether it is a sum, and `constant` whether something that no input
    determines is added, or put in place of values on the way.
    """

    description: dict[str, Any]
    before: tuple[int, ...]
    adds: bool
    constant: bool

    @property
    def name(self) -> str:
        return site_name(self.description)


def find_sites(model: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    """The sites to quantize, in call order: dicts of the fields of `Site`, and `layer`.

    `layer` is the module that makes the call, "" for the model itself. The first site is the
    model's input, unless it consists of ids. The model's output stays float.
    """
    return [site.description for site in trace_sites(model, example)]


def trace_sites(model: nn.Module, example: Tensor) -> list[TracedSite]:
    """The sites of `find_sites` and how they are connected."""
    calls, last = trace(model, example)
    chosen = ({0} if example.is_floating_point() else set()) | {
        _end_of_chain(calls, position)
        for position, call in enumerate(calls)
        if call.function in _PRODUCERS
    }
    positions = [p for p in sorted(chosen) if p != last and _can_be_rounded(calls, p)]
    numbers = {position: number for number, position in enumerate(positions)}
    return [_traced(calls, position, numbers) for position in positions]


def _can_be_rounded(calls: list[Call], position: int) -> bool:
    """Whether a call has a place, returns what QuantizeLinear takes (no float64), and nothing reads
    it for which rounding to zero is another thing than a small value: roots, logarithms, divisors.
    """
    call = calls[position]
    single = isinstance(call.output, Tensor) and call.output.dtype == torch.float32
    readers = (calls[consumer] for consumer in call.consumers)
    small = any(
        reader.function in _NEAR_ZERO
        or (reader.function in _QUOTIENTS and position in reader.sources[1:])
        for reader in readers
    )
    return single and not small and call.site.index != UNCOUNTED


def _traced(calls: list[Call], position: int, numbers: Mapping[int, int]) -> TracedSite:
    call, ways = calls[position], _ways(calls, position, numbers)
    starts = any(not calls[n].sources for n in ways if n != position)  # at ids, which have no site
    nearest = {source for n in ways for source in calls[n].sources if source in numbers}
    before = () if starts else tuple(sorted(numbers[source] for source in nearest))
    adds = call.function in _SUMS
    replaced = any(calls[n].function in _REPLACE for n in ways)
    return TracedSite(_described(call), before, adds, replaced or (adds and call.constant))


def _ways(calls: list[Call], position: int, numbers: Mapping[int, int]) -> set[int]:
    """The positions of a site's call and of the calls between it and the sites before."""
    found, waiting = {position}, [position]
    while waiting:
        for source in calls[waiting.pop()].sources:
            if source not in numbers and source not in found:
                found.add(source)
                waiting.append(source)
    return found


def find_readers(model: nn.Module, example: Tensor, layers: Iterable[str]) -> list[dict[str, Any]]:
    """The calls of convolutions and linear functions that use a weight of `layers`, in the form of
    `find_sites`.
    """
    weights = {id(model.get_parameter(f"{name}.weight")) for name in layers}
    calls, _ = trace(model, example)
    return [
        _described(c)
        for c in calls
        if c.function in _FUSES_BATCHNORM and not weights.isdisjoint(c.parameters)
    ]


def site_name(site: Mapping[str, Any]) -> str:
    """A site as "LAYER:FUNCTION", followed by ":INDEX" if that is not 0; the input is "input"."""
    if site["function"] == "input":
        return "input"
    suffix = f":{site['index']}" if site["index"] else ""
    return f"{site['layer']}:{site['function']}{suffix}"


def _described(call: Call) -> dict[str, Any]:
    return {**asdict(call.site), "layer": call.layer}


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

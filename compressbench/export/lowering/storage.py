"""Chooses the storage of each weight and the kernel that reads it.

Signed storage holds the steps, unsigned storage steps + zero point. The kernel is one of

- `integer`: activations and weights are int8 or uint8;
- `dynamic`: the same, with activations quantized at run time;
- `lookup`: rows of an embedding are gathered, and only they are converted to float;
- `float`: the weight is converted to float once, when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import add_initializer, attribute, constant, inputs, insert_before
from compressbench.export.grids import Grids, WeightGrid
from compressbench.export.lowering.integer import (
    dynamic_quantizer,
    input_grid,
    integer_grid,
    readers,
)
from compressbench.export.opsets import NEWEST, stored_width

Kernel = Literal["integer", "dynamic", "float", "lookup"]
FINE_ENOUGH = 255 * 255  # see `_is_coarse`: just met by 2-bit weights and 8-bit activations
_FLOAT_INPUT = "its input is not quantized"
_FLOAT_OUTPUT = "its output is not quantized: no integer convolution returns floats"
_GROUPS = "no integer kernel supports a scale per group"
_UNEVEN = "no integer convolution supports a zero point per channel"
_CODEBOOK = "no integer kernel supports a codebook"
_COARSE = "its bias would be too coarse in units of activation scale * weight scale"
_ROWS = "only the rows that are looked up are converted to float"
_OLD = f"{_UNEVEN} in runtimes before opset {NEWEST}"


@dataclass(frozen=True)
class Storage:
    """How a weight is stored and which kernel reads it.

    Attributes:
        width: Bits per integer.
        zero_point: Offset added to the steps, in the shape of the scale; None for signed storage.
        kernel: See the module.
        reason: Why the kernel is not an integer kernel; "" if it is.
        newest: Whether only runtimes that support the newest opset have the kernel.
    """

    width: int
    zero_point: NDArray[np.int64] | None
    kernel: Kernel
    reason: str = ""
    newest: bool = False

    @property
    def shown(self) -> str:
        """The name of the kernel in reports."""
        return "integer" if self.kernel == "dynamic" else self.kernel

    @property
    def kind(self) -> str:
        """The integer type, such as `uint4`."""
        return f"{'int' if self.zero_point is None else 'uint'}{self.width}"

    @property
    def uneven(self) -> bool:
        """Whether zero points differ between channels or groups."""
        return self.zero_point is not None and bool(
            (self.zero_point != self.zero_point.min()).any()
        )


def plan_storage(
    graph: ir.Graph, grids: Grids, wide: Collection[str], opset: int
) -> dict[str, Storage]:
    """Choose the storage of all `grids`, by initializer, for runtimes that support `opset`.

    `wide` are the weights that would saturate as int8 (see `export.saturation`). They are stored as
    uint8, for which ONNX Runtime uses a slower, exact kernel on x86 CPUs without VNNI.
    """
    return {
        name: _plan(grid, readers(graph, name), name in wide, opset) for name, grid in grids.items()
    }


def _plan(grid: WeightGrid, nodes: Sequence[ir.Node], wide: bool, opset: int) -> Storage:
    width = stored_width(grid.bits, opset)
    around_zero = grid.codebook is None and _fits(grid.steps, width) and not wide
    natural = None if around_zero else _zero_point(grid, width)
    if nodes and all(node.op_type == "Gather" for node in nodes):
        return Storage(width, natural, "lookup", _ROWS)
    rounded = bool(nodes) and all(dynamic_quantizer(node) for node in nodes)
    offset = _zero_point(grid, width) if rounded else natural
    made = Storage(width, offset, "dynamic" if rounded else "integer")
    reason = _why_float(nodes, rounded) or _why_not(grid, made, nodes, opset)
    if reason:
        return Storage(width, natural, "float", reason)
    newest = made.uneven and width == 8 and any(node.op_type == "Conv" for node in nodes)
    return Storage(width, offset, made.kernel, "", newest)


def _why_float(nodes: Sequence[ir.Node], rounded: bool) -> str:
    """Why the activations around a layer rule out an integer kernel; "" if they do not."""
    if rounded or (nodes and all(integer_grid(node) is not None for node in nodes)):
        return ""
    quantized = bool(nodes) and all(input_grid(node) is not None for node in nodes)
    return _FLOAT_OUTPUT if quantized else _FLOAT_INPUT


def _why_not(grid: WeightGrid, made: Storage, nodes: Sequence[ir.Node], opset: int) -> str:
    """Why the grid of the weight rules out an integer kernel; "" if it does not."""
    if grid.codebook is not None:
        return _CODEBOOK
    if grid.scale.ndim == 2:
        return _GROUPS
    if made.kernel == "integer" and any(_is_coarse(grid, node) for node in nodes):
        return _COARSE
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    if not (made.uneven and convolutions):
        return ""
    if made.width < 8:
        return ""  # the integers are converted on loading, to one zero point for all channels
    if made.kernel == "dynamic":
        return _UNEVEN
    if any(attribute(node, "group", 1) > 1 for node in convolutions):
        return _UNEVEN  # possible, but 40 times slower than float
    return "" if opset >= NEWEST else _OLD


def _is_coarse(grid: WeightGrid, node: ir.Node) -> bool:
    """Whether rounding the bias to units of activation scale * weight scale adds visible noise.

    ONNX Runtime rounds every bias of an integer kernel to this unit. With A activation levels and W
    weight steps, the largest product is A * W units. The rounding moves about one output in 2 * W
    to a neighbouring level, 1 / A of the range: noise of 1 / sqrt(2 * A**2 * W) of the range. At
    0.4 % (8-bit weights, 4-bit activations) file and model no longer agree on every class.

    That is for outputs which use the whole range. Where the products are small beside the bias, as
    with inputs that are always zero, a unit may also be too large for the biases themselves.
    """
    found, bias = integer_grid(node), constant(inputs(node, 3)[2])
    if found is None or inputs(node, 3)[2] is None:
        return False
    if found.levels**2 * ((1 << (grid.bits - 1)) - 1) < FINE_ENOUGH:
        return True
    if bias is None or not bias.any() or grid.scale.ndim > 1:
        return False
    unit = found.scale * float(np.abs(np.broadcast_to(grid.scale, bias.shape)[bias != 0]).max())
    return unit > float(np.sqrt(np.square(bias).mean()))


def _fits(steps: NDArray[Any], width: int) -> bool:
    half = 1 << (width - 1)
    return bool(steps.min() >= -half and steps.max() < half)


def _zero_point(grid: WeightGrid, width: int) -> NDArray[np.int64]:
    """Zero points that make the steps unsigned.

    A symmetric grid gets the same zero point everywhere if possible; a channel whose lowest step
    became its highest through a negative factor needs one less.
    """
    if grid.zero_point is not None:
        return grid.zero_point
    half = 1 << (width - 1)
    if grid.codebook is not None:
        return np.zeros(grid.scale.shape, np.int64)
    highest = grid.rows().max(axis=-1)
    if grid.steps.min() > -half:
        highest = np.full(highest.shape, highest.max())
    zero_point: NDArray[np.int64] = np.where(highest >= half, half - 1, half).astype(np.int64)
    return zero_point


def keep_float(graph: ir.Graph, storages: Mapping[str, Storage]) -> None:
    """Dequantize the input of float layers with a scale per channel, all of them the same.

    Behind a DequantizeLinear with one scale, ONNX Runtime 1.32 would round their weights to 8 bits
    on its own. A copy in between would stop it as well, but takes 2 to 4 % of the layer's time.
    """
    changed: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or node.inputs[1] is None:
            continue
        storage = storages.get(node.inputs[1].name or "")
        planned = storage is not None and storage.kernel == "integer"
        value = node.inputs[0]
        if not planned and value is not None and input_grid(node) is not None:
            if value not in changed:
                changed[value] = _per_channel(graph, value)
            node.replace_input_with(0, changed[value])


def _per_channel(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """What the DequantizeLinear of `value` computes, with its scale and zero point repeated along
    axis 1; a runtime repeats them once, on loading. One channel, or an unknown number of them, is
    copied instead, by a Sum with one term.
    """
    source = value.producer()
    assert source is not None
    assert value.shape is not None
    if value.shape[1] == 1 or not isinstance(value.shape[1], int):
        copy = ir.node("Sum", [value])
        graph.insert_after(source, copy)
        return copy.outputs[0]
    name, count = f"channels.{value.shape[1]}", np.array([value.shape[1]], np.int64)
    shape = graph.initializers.get(name) or add_initializer(graph, name, count)
    codes, scale, zero_point = source.inputs
    repeated = [insert_before(source, "Expand", [v, shape]) for v in (scale, zero_point)]
    return insert_before(source, "DequantizeLinear", [codes, *repeated], {"axis": 1})

"""How each weight is stored, and which kernels read it.

Signed integers are the steps; unsigned ones are steps + zero point. A kernel is `integer` where
ONNX Runtime computes with int8 or uint8 on both sides, `dynamic` the same with activations
quantized at run time, `lookup` where rows are picked and only they become floats, else `float`:
the weight is then computed once, when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import attribute, inputs, insert_before
from compressbench.export.grids import Grids, WeightGrid
from compressbench.export.lowering.integer import (
    dynamic_quantizer,
    input_grid,
    integer_grid,
    readers,
)
from compressbench.export.opsets import NEWEST, stored_width

Kernel = Literal["integer", "dynamic", "float", "lookup"]
FINE_ENOUGH = 15 * 15 * 127  # see `_is_coarse`: 8-bit weights and 4-bit activations just are
_FLOAT_INPUT = "its input is not quantized"
_FLOAT_OUTPUT = "its output is not quantized: no integer convolution returns floats"
_GROUPS = "no integer kernel takes a scale per group"
_UNEVEN = "no integer convolution takes zero points that differ between channels"
_CODEBOOK = "no integer kernel computes with values of a codebook"
_COARSE = "its bias, in integers of the scales of weights and activations, would be too coarse"
_ROWS = "only the rows that are looked up become floats"
_OLD = f"{_UNEVEN}, before the runtimes of opset {NEWEST}"


@dataclass(frozen=True)
class Storage:
    """`width` bits an integer; `zero_point` in the shape of the scale, None where steps are stored
    as they are. `reason` says why the kernel is float, or "". `newest`: only runtimes of the
    newest opset run the kernel.
    """

    width: int
    zero_point: NDArray[np.int64] | None
    kernel: Kernel
    reason: str = ""
    newest: bool = False

    @property
    def shown(self) -> str:
        """The kernel as reports name it."""
        return "integer" if self.kernel == "dynamic" else self.kernel

    @property
    def kind(self) -> str:
        return f"{'int' if self.zero_point is None else 'uint'}{self.width}"

    @property
    def uneven(self) -> bool:
        return self.zero_point is not None and bool(
            (self.zero_point != self.zero_point.min()).any()
        )


def plan_storage(
    graph: ir.Graph, grids: Grids, wide: Collection[str], opset: int
) -> dict[str, Storage]:
    """The storage of all `grids`, by initializer, for runtimes up to `opset`.

    `wide` are the weights of which int8 would saturate somewhere (`export.saturation`): they are
    stored as uint8, for which x86 CPUs without VNNI take a slower, exact kernel.
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
    """Why the activations around a layer rule integer kernels out, or ""."""
    if rounded or (nodes and all(integer_grid(node) is not None for node in nodes)):
        return ""
    quantized = bool(nodes) and all(input_grid(node) is not None for node in nodes)
    return _FLOAT_OUTPUT if quantized else _FLOAT_INPUT


def _why_not(grid: WeightGrid, made: Storage, nodes: Sequence[ir.Node], opset: int) -> str:
    """Why the grid of the weight rules integer kernels out, or ""."""
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
        return ""  # all get the same zero point when the file is loaded
    if made.kernel == "dynamic":
        return _UNEVEN
    if any(attribute(node, "group", 1) > 1 for node in convolutions):
        return _UNEVEN  # possible, but 40 times slower than float
    return "" if opset >= NEWEST else _OLD


def _is_coarse(grid: WeightGrid, node: ir.Node) -> bool:
    """Whether rounding the bias of a node to units of (activation scale * weight scale), as ONNX
    Runtime does for any bias of an integer kernel, could be seen.

    A largest product of A levels and W steps has A * W units. The error tips an output into the
    next of its A levels in one of 2 * W cases or so, and each time by 1 / A of the range: together
    a noise of 1 / sqrt(2 * A**2 * W) of it.
    """
    found = integer_grid(node)
    if found is None or inputs(node, 3)[2] is None:
        return False
    return found.levels**2 * ((1 << (grid.bits - 1)) - 1) < FINE_ENOUGH


def _fits(steps: NDArray[Any], width: int) -> bool:
    half = 1 << (width - 1)
    return bool(steps.min() >= -half and steps.max() < half)


def _zero_point(grid: WeightGrid, width: int) -> NDArray[np.int64]:
    """Zero points under which the steps are unsigned; for a grid around zero the same for all
    where one does, and one less where a sign has turned the lowest step into the highest.
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
    """Put a Sum of one term, a copy, in front of float layers whose input was quantized.

    ONNX Runtime 1.32 would round their float weights to 8 bits of its own otherwise.
    """
    for node in list(graph):
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or node.inputs[1] is None:
            continue
        storage = storages.get(node.inputs[1].name or "")
        planned = storage is not None and storage.kernel == "integer"
        if not planned and input_grid(node) is not None:
            node.replace_input_with(0, insert_before(node, "Sum", [node.inputs[0]]))

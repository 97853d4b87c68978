"""Weights that are mostly zero: a bit for each element, and the values of those that are not.

tensor = Reshape(Split(Gather([zero, values...], CumSum(bits) * bits))), where bits are the stored
bytes, taken apart. All of it is computed once, when a runtime loads the file; the tensors of one
type share it. ONNX's own sparse tensors need eight bytes an element for its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compressbench.export.graph import add_initializer, constant, insert_before
from compressbench.export.opsets import NATIVE

SMALLEST = 256  # elements of a tensor that is looked at
OVERHEAD, EACH = 400, 80  # bytes of the nodes that take bits apart, and for each tensor
SHARE = 0.75  # of its bytes, that packing has to get below
LARGEST = 2**22  # elements taken apart at a time, which bounds what loading needs
_BYTES = {"int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8"}  # to index them by
_DTYPES = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.INT8: np.dtype(np.int8),
    ir.DataType.UINT8: np.dtype(np.uint8),
    ir.DataType.INT4: np.dtype(ml_dtypes.int4),
    ir.DataType.UINT4: np.dtype(ml_dtypes.uint4),
    ir.DataType.INT2: np.dtype(ml_dtypes.int2),
    ir.DataType.UINT2: np.dtype(ml_dtypes.uint2),
}


@dataclass(frozen=True)
class _Sparse:
    """An initializer that is mostly `common`."""

    value: ir.Value
    elements: NDArray[Any]
    common: float

    @property
    def kind(self) -> tuple[ir.DataType, float]:
        return _dtype(self.value), self.common

    @property
    def saved_bytes(self) -> float:
        others = int((self.elements != self.common).sum())
        return ((self.elements.size - others) * self.kind[0].bitwidth - self.elements.size) / 8


def pack_zeros(graph: ir.Graph, opset: int) -> set[str]:
    """Pack what becomes smaller by it; the names of those initializers.

    `opset` is that of the file: before 18 no operator takes bytes apart.
    """
    if opset < NATIVE:
        return set()
    order = {node: position for position, node in enumerate(graph)}
    found = [sparse for value in graph.initializers.values() if (sparse := _sparse(value))]
    packed = set()
    for kind in sorted({sparse.kind for sparse in found}):
        for part in _parts([sparse for sparse in found if sparse.kind == kind]):
            if sum(sparse.saved_bytes - EACH for sparse in part) > OVERHEAD:
                uses = [usage.node for sparse in part for usage in sparse.value.uses()]
                _pack(graph, min(uses, key=order.__getitem__), part)
                packed |= {str(sparse.value.name) for sparse in part}
    return packed


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.const_value is not None
    return value.const_value.dtype


def _sparse(value: ir.Value) -> _Sparse | None:
    elements, dtype = constant(value), _dtype(value)
    if elements is None or dtype not in _DTYPES or elements.size < SMALLEST:
        return None
    if value.is_graph_output() or not value.uses():
        return None
    narrow = dtype.bitwidth < 8
    if narrow and not all(usage.node.op_type == "Cast" for usage in value.uses()):
        return None
    elements = elements.astype(np.float32)  # exact for all of these types
    common = 0.0
    if dtype != ir.DataType.FLOAT:
        lowest = int(elements.min())
        counts = np.bincount((elements.ravel() - lowest).astype(np.int64))
        common = float(lowest + int(counts.argmax()))
    found = _Sparse(value, elements, common)
    enough = (1 - SHARE) * elements.size * dtype.bitwidth / 8
    return found if found.saved_bytes >= enough else None


def _parts(sparse: Sequence[_Sparse]) -> Iterator[list[_Sparse]]:
    """Tensors that are taken apart together."""
    part: list[_Sparse] = []
    for one in sparse:
        if part and sum(p.elements.size for p in part) + one.elements.size > LARGEST:
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _pack(graph: ir.Graph, anchor: ir.Node, part: Sequence[_Sparse]) -> None:
    """Compute the tensors of `part` in front of `anchor`."""
    dtype, common = part[0].kind
    name = f"{part[0].value.name}.packed"
    flat = np.concatenate([sparse.elements.ravel() for sparse in part])
    kept = flat != common
    rest = -len(flat) % 8
    bits = np.packbits(np.pad(kept, (0, rest)), bitorder="little").reshape(-1, 1)
    table = np.concatenate([[common], flat[kept]]).astype(_DTYPES[dtype])
    values = add_initializer(graph, f"{name}.values", table)
    if _DTYPES[dtype].name in _BYTES:
        wide = ir.DataType[_BYTES[_DTYPES[dtype].name].upper()]
        values = insert_before(anchor, "Cast", [values], {"to": int(wide)})
    flags = _flags(graph, anchor, name, bits)
    axis = add_initializer(graph, f"{name}.axis", np.array(0, np.int64))
    count = insert_before(anchor, "CumSum", [flags, axis])
    dense = insert_before(anchor, "Gather", [values, insert_before(anchor, "Mul", [count, flags])])
    sizes = [sparse.elements.size for sparse in part] + ([rest] if rest else [])
    for sparse, piece in zip(part, _pieces(graph, anchor, name, dense, sizes), strict=False):
        shape = add_initializer(
            graph, f"{sparse.value.name}.shape", np.array(sparse.elements.shape, np.int64)
        )
        tensor = insert_before(anchor, "Reshape", [piece, shape])
        graph.initializers.pop(str(sparse.value.name))
        sparse.value.replace_all_uses_with(tensor)


def _flags(graph: ir.Graph, anchor: ir.Node, name: str, bits: NDArray[np.uint8]) -> ir.Value:
    """One int32 for each bit of `bits` [N, 1]: 0 or 1, in a row."""
    stored = add_initializer(graph, f"{name}.bits", bits)
    each = np.left_shift(1, np.arange(8)).reshape(1, -1).astype(np.uint8)
    powers = add_initializer(graph, f"{name}.powers", each)
    masked = insert_before(anchor, "BitwiseAnd", [stored, powers])
    true = insert_before(anchor, "Cast", [masked], {"to": int(ir.DataType.BOOL)})
    ones = insert_before(anchor, "Cast", [true], {"to": int(ir.DataType.INT32)})
    flat = add_initializer(graph, f"{name}.flat", np.array([-1], np.int64))
    return insert_before(anchor, "Reshape", [ones, flat])


def _pieces(
    graph: ir.Graph, anchor: ir.Node, name: str, dense: ir.Value, sizes: Sequence[int]
) -> Sequence[ir.Value]:
    if len(sizes) == 1:
        return [dense]
    lengths = add_initializer(graph, f"{name}.sizes", np.array(sizes, np.int64))
    node = ir.node("Split", [dense, lengths], num_outputs=len(sizes))
    graph.insert_before(anchor, node)
    return node.outputs

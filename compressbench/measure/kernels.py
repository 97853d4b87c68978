"""Counts the integer and float kernels that ONNX Runtime actually runs."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from compressbench.core.disk_full import explained_when_full

INTEGER = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)
INTEGER_ELEMENTWISE = ("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool")
FLOAT = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def integer_kernels(onnx_path: Path) -> dict[str, int]:
    """Count the operators in the graph as optimized by ONNX Runtime, by name, without zeros.

    Only the operators listed above are counted. The optimized graph depends on the CPU.
    """
    import onnx

    from compressbench.measure.session import open_session, options

    with tempfile.TemporaryDirectory() as folder:
        chosen = options()
        chosen.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        with explained_when_full(Path(folder), onnx_path.stat().st_size):
            open_session(onnx_path, chosen)
        graph = onnx.load(chosen.optimized_model_filepath).graph
    counts = Counter(node.op_type for node in graph.node)
    names = (*INTEGER, *INTEGER_ELEMENTWISE, *FLOAT)
    return {name: counts[name] for name in names if counts[name]}

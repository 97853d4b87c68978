"""Lowers a traced graph to the operators that are written to a file."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from compressbench.export.grids import WeightGrid
from compressbench.export.lowering import (
    batchnorm,
    clamps,
    constants,
    dynamic,
    linear,
    moves,
    oldest,
    pooling,
    reshape,
)
from compressbench.export.lowering.strip import strip
from compressbench.export.opsets import OLDEST


def lower(model: ir.Model, grids: Mapping[str, WeightGrid]) -> dict[str, WeightGrid]:
    """Run the lowering passes in order; each relies on the patterns that earlier passes leave."""
    graph = model.graph
    linear.matmul_to_gemm(graph)
    constants.fold_constants(model, grids.keys())
    reshape.static_shapes(graph)
    pooling.mean_to_pool(graph)
    moves.pad_in_convolutions(graph)
    constants.drop_zero_biases(graph)  # torch writes that of a Conv3d in a wrong shape
    folded = batchnorm.fold_batchnorm(graph, grids)
    constants.drop_zero_biases(graph)
    clamps.drop_clamps(graph)
    dynamic.share_quantizers(graph)
    moves.move_integers(graph)
    return folded


def finish(model: ir.Model, declared: int) -> onnx.ModelProto:
    """The model as protobuf that declares the opset `declared`.

    Raises UserError for an operator that the opset does not have.
    """
    constants.drop_unused(model)
    if declared == OLDEST:
        oldest.lower_to_oldest(model)
    return strip(model)

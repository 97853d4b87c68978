"""Traces a PyTorch model to an onnx_ir graph with QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

import compressbench.core.activation_quantizers  # noqa: F401 - registers the operators
from compressbench.export.attention import FourAxes

INPUT, OUTPUT, BATCH = "input", "logits", "batch"


def to_graph(model: nn.Module, example: Tensor, opset: int) -> ir.Model:
    """Trace a copy of `model`, in eval mode, to a graph that is not optimized yet.

    `example` is [B, ...] with B >= 2, so that the batch size stays dynamic; `opset` is at least 18.
    Initializers have the parameter names of the model.
    """
    traced = copy.deepcopy(model).eval().cpu()
    operators = torch.ops.compressbench
    with quiet(), FourAxes(), function_modes_kept():
        program = torch.onnx.export(
            traced,
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            custom_translation_table={
                operators.fake_quantize.default: _quantize_dequantize,
                operators.dynamic_fake_quantize.default: _quantize_dynamically,
            },
            optimize=False,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    assert program is not None
    return program.model


def _quantize_dequantize(values: Any, scale: Any, zero_point: Any, bits: int) -> Any:
    import onnx
    from onnxscript import opset18 as op  # the exporter traces in opset 18 and converts later

    integers = op.QuantizeLinear(values, scale, zero_point)
    if bits < 8:  # clip to the smaller range as integers, which is exact
        low, high = (
            op.Constant(value=onnx.helper.make_tensor("limit", onnx.TensorProto.UINT8, [], [v]))
            for v in (0, 2**bits - 1)
        )
        integers = op.Clip(integers, low, high)
    return op.DequantizeLinear(integers, scale, zero_point)


def _quantize_dynamically(values: Any) -> Any:
    from onnxscript import opset18 as op

    integers, scale, zero_point = op.DynamicQuantizeLinear(values)
    return op.DequantizeLinear(integers, scale, zero_point)


@contextlib.contextmanager
def function_modes_kept() -> Iterator[None]:
    """End the function modes that were begun within the block.

    torch.export calls no hooks after an error, so those of activation quantizers would stay active
    for the whole process.
    """
    before = torch._C._len_torch_function_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_function_stack() > before:
            torch._C._pop_torch_function_stack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which prints, warns and logs about its insides."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    shown = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

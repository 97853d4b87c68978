"""Exports an untrained model, so that what cannot be exported shows before any training.

The graph is traced, lowered and loaded as that of a trained model, without a file, and must compute
what the model computes for batches of 1 and 3, also where values are larger than in the trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressbench.core.activation_quantizers import attach_
from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec
from compressbench.export import place, reasons
from compressbench.export.opsets import IR_VERSION, NATIVE, NEWEST, check_opset, declared_opset

Trace = Callable[[nn.Module, Tensor, int], ir.Model]
BATCHES = ((1, 1.0), (3, 4.0))  # samples and their scale: the graph is traced with 2, of scale 1
TOLERANCE = 0.01  # median error over the largest output; a graph of something else is far beyond
NO_SITES = {"kind": "activation_grid", "sites": [], "bits": 8}
_NO = "the model cannot be exported: "


def try_export(
    model: nn.Module, spec: DataSpec, opset: int = NEWEST, trace: Trace | None = None
) -> None:
    """Export `model` to memory and compare the graph with it.

    Args:
        model: As instantiated, in any mode; it stays as it is.
        spec: Gives the shape of the inputs, which are random.
        opset: Newest opset that the target runtime supports, in [17, 25].
        trace: Returns the graph of a model for an example input and an opset, `to_graph` by
            default; places of nodes are known to `to_graph` alone.

    Raises:
        UserError: The model cannot be exported, or the graph computes something else: one line with
            the reason and, where it is known, the place in the model's code.
    """
    check_opset(opset)
    _check_types(model)
    tried = copy.deepcopy(model).eval().cpu()
    attach_(tried, NO_SITES)  # a quantized model is traced through these, too
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        traced = _trace(tried, spec.noise(2, generator), opset, trace)
        session = _session(traced, opset)
        for count, scale in BATCHES:
            inputs = spec.noise(count, generator)
            _compare(session, tried, inputs * scale if inputs.is_floating_point() else inputs)


def _check_types(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"{_NO}its parameter {name} is {kind}, must be float32: call float() on the model"
            )


def _trace(model: nn.Module, example: Tensor, opset: int, trace: Trace | None) -> ir.Model:
    """The graph of a model. Raises UserError if there is none, or one for this batch size only."""
    from compressbench.export.translate import to_graph

    try:
        traced = (trace or to_graph)(model, example, max(declared_opset((), opset), NATIVE))
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(_NO + reasons.not_traced(error, model, example)) from error
    for value in (traced.graph.inputs[0], traced.graph.outputs[0]):
        if not value.shape or isinstance(value.shape[0], int):
            raise UserError(_NO + reasons.fixed_batch(model, example))
    return traced


def _session(traced: ir.Model, opset: int) -> Any:
    """ONNX Runtime's session of the lowered graph, whose nodes still have their names."""
    import onnxruntime

    from compressbench.export.lowered import finish, lower

    declared = declared_opset((), opset)
    traced.ir_version = IR_VERSION[declared]
    lower(traced, {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        named = ir.to_proto(traced).SerializeToString()
        onnxruntime.InferenceSession(named, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime share no base class
        raise UserError(_NO + reasons.not_loaded(str(error), traced.graph)) from error
    written = finish(traced, declared).SerializeToString()
    return onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])


def _compare(session: Any, model: nn.Module, inputs: Tensor) -> None:
    """Raise UserError unless the graph computes what the model does."""
    expected, again = _outputs(model, inputs), _outputs(model, inputs)
    where = f"for a batch of {len(inputs)}"
    if expected.ndim == 0 or len(expected) != len(inputs):
        shape = list(expected.shape)
        raise UserError(f"{_NO}{where} it returns {shape}, must be [{len(inputs)}, ...]")
    if not _same(again, expected):
        raise UserError(
            f"{_NO}it returns other numbers each time it is called: no randomness and no state "
            "may be left in evaluation"
        )
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
    if got.shape != expected.shape or not _same(got, expected):
        line = reasons.place_of_fixed_batch(model, inputs[:1].repeat(2, *[1] * (inputs.ndim - 1)))
        raise UserError(
            f"{_NO}{where} its traced graph computes something else than its forward{line}: "
            "nothing but tensor operations on the input may decide what is returned"
        )


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a model returns, or the first of several outputs."""
    try:
        with torch.no_grad():
            outputs = model(inputs.clone())
    except Exception as error:  # the code of the user may raise anything
        raise UserError(
            f"{_NO}for a batch of {len(inputs)} it fails{place.of_error(error)}: "
            f"{type(error).__name__}: {reasons.first_line(error)}"
        ) from error
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values() if isinstance(outputs, dict) else outputs))
    return outputs.float()


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether the median difference is small; what is not finite is not compared."""
    finite = first.isfinite() & second.isfinite()
    if not bool(finite.any()):
        return True
    apart = (first - second)[finite].abs().median()
    return bool(apart <= TOLERANCE * second[finite].abs().max())

"""Says in one line why a model cannot be exported, with the place in the model's code."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressbench.export import place
from compressbench.export.translate import function_modes_kept, quiet

_SHAPES = "torch.fx.experimental.symbolic_shapes"  # the logger of torch.export's guards
_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='(.+?)'")
_NODE = re.compile(r"Error when translating node %(\w+)")
_NO_KERNEL = re.compile(r"implementation for (\w+)\(\d+\) node with name '(.*?)'")
_WRONG_TYPE = re.compile(r"Type '\w+\((.+?)\)' of .* of operator \((\w+)\) in node \((.*?)\)")


def not_traced(error: Exception, model: nn.Module, example: Tensor) -> str:
    """Why torch's exporter failed on `model`."""
    unknown, node = _UNKNOWN.search(str(error)), _NODE.search(str(error))
    if unknown and node:
        where = _place_in_program(node.group(1), model, example)
        return f"ONNX has no operator for {unknown.group(1)}{where}"
    cause = error.__cause__ or error
    where = place.of_error(cause)
    if isinstance(cause, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        return f"what runs depends on data{where}: use tensor operations, such as torch.where"
    return f"{type(cause).__name__}{where}: {first_line(cause)}"


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def fixed_batch(model: nn.Module, example: Tensor) -> str:
    """Why the batch size became a constant of the traced graph."""
    return (
        f"its batch size becomes a constant{place_of_fixed_batch(model, example)}: use x.size(0) "
        "or -1 as they are, without int(), float(), len(), comparisons, or loops over the samples"
    )


def not_loaded(message: str, graph: ir.Graph) -> str:
    """Why ONNX Runtime does not load a graph, from its error message."""
    wrong, missing = _WRONG_TYPE.search(message), _NO_KERNEL.search(message)
    if wrong:
        kind, operator, name = wrong.groups()
    elif missing:
        operator, name = missing.groups()
        kind = _types(graph, name)
    else:
        return f"ONNX Runtime refuses the graph: {message.strip().partition(chr(10))[0]}"
    node = _named(graph, name)
    return f"ONNX Runtime has no {operator} of {kind}{place.of_node(node) if node else ''}"


def _place_in_program(node: str, model: nn.Module, example: Tensor) -> str:
    with quiet(), function_modes_kept():
        program = torch.export.export(model, (example,), strict=False).run_decompositions()
    stacks = {n.name: str(n.meta.get("stack_trace", "")) for n in program.graph.nodes}
    return place.of_stack(stacks.get(node, ""))


def place_of_fixed_batch(model: nn.Module, example: Tensor) -> str:
    """Where torch.export decides that the batch size is a constant; "" if it does not."""
    listener, dynamic = _Listener(), ({0: torch.export.Dim("batch")},)
    with _only_handler(logging.getLogger(_SHAPES), listener), function_modes_kept():
        try:
            torch.export.export(model, (example,), dynamic_shapes=dynamic, strict=False)
        except torch._dynamo.exc.UserError:
            return listener.places[0] if listener.places else ""
    return ""


class _Listener(logging.Handler):
    """Notes the line of the user that runs when torch.export logs that a size is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("set_replacement"):
            self.places.append(place.of_call())


@contextmanager
def _only_handler(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Let `handler` alone have what `logger` logs."""
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def _named(graph: ir.Graph, name: str) -> ir.Node | None:
    return next((node for node in graph.all_nodes() if node.name == name), None)


def _types(graph: ir.Graph, name: str) -> str:
    """The types of the inputs of a node, such as "float64"."""
    node = _named(graph, name)
    kinds = {_numpy_name(v.dtype) for v in node.inputs if v and v.dtype} if node else set()
    return " and ".join(sorted(kinds)) or "these types"


def _numpy_name(kind: ir.DataType) -> str:
    return {"DOUBLE": "float64", "FLOAT": "float32"}.get(kind.name, kind.name.lower())

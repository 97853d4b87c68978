"""The graph of an architecture on disk, without its weights: tracing is most of an export's time.

A model is its architecture, the edits replayed on it, and tensors; so what torch.onnx makes of it
is a graph that depends on the first two alone, and initializers that are its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Edit

# They give layers buffers for the export, and leave what the model computes as it is.
_AFTER_TRACING = {"mask", "weight_grid", "codebook"}
_FOR_READERS = {"resize": "removed", "activation_grid": "calibration"}


def traced_edits(edits: Iterable[Edit]) -> list[Edit]:
    """What the graph depends on, of the edits that made a model."""
    return [
        {name: value for name, value in edit.items() if name != _FOR_READERS.get(edit["kind"])}
        for edit in edits
        if edit["kind"] not in _AFTER_TRACING
    ]


def write_graph(traced: ir.Model, model: nn.Module, path: Path) -> None:
    """Write the graph of `model` with its parameters and buffers as inputs without a value."""
    graph, tensors = traced.graph, _tensors(model)
    for name in [name for name in graph.initializers if name in tensors]:
        value = graph.initializers.pop(name)
        if not value.uses():
            continue
        assert value.const_value is not None
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(list(tensors[name].shape))
        value.const_value = None
        graph.inputs.append(value)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # where in whose sources each one comes from
    ir.save(traced, path)


def read_graph(path: Path, model: nn.Module) -> ir.Model:
    """The graph of a file with the tensors of `model` in it.

    Raise CheckFailedError where they are not those that the graph was made with.
    """
    traced, tensors = ir.load(path), _tensors(model)
    graph = traced.graph
    for value in list(graph.inputs)[1:]:
        name = str(value.name)
        if name not in tensors or tuple(tensors[name].shape) != _shape(value):
            raise CheckFailedError(f"the stored graph does not belong to this model: {name}")
        graph.inputs.remove(value)
        value.const_value = ir.tensor(tensors[name].detach().cpu().numpy(), name=name)
        graph.initializers[name] = value
    return traced


def _tensors(model: nn.Module) -> Mapping[str, Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def _shape(value: ir.Value) -> tuple[Any, ...]:
    assert value.shape is not None
    return tuple(value.shape)

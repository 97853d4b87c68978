"""Stores the traced graph of an architecture without its weights.

Tracing takes most of the time of an export, and its graph depends only on the architecture and the
edits replayed on it; the initializers are the model's tensors, which are put back on reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError
from compressbench.core.external_data import check_self_contained
from compressbench.core.types import Edit

# These edits add buffers that the export reads, without changing the computation.
_AFTER_TRACING = {"mask", "weight_grid", "codebook"}
_FOR_READERS = {"resize": "removed", "activation_grid": "calibration"}


def traced_edits(edits: Iterable[Edit]) -> list[Edit]:
    """The edits of a model, and their fields, that its traced graph depends on."""
    return [
        {name: value for name, value in edit.items() if name != _FOR_READERS.get(edit["kind"])}
        for edit in edits
        if edit["kind"] not in _AFTER_TRACING
    ]


def write_graph(traced: ir.Model, model: nn.Module, path: Path) -> None:
    """Write the traced graph of `model`, its parameters and buffers replaced by graph inputs."""
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
        node.metadata_props.clear()  # source locations, with paths of this machine
    ir.save(traced, path)


def read_graph(path: Path, model: nn.Module) -> ir.Model:
    """Read a graph and fill in the tensors of `model`.

    Raises CheckFailedError if their names or shapes do not match the stored graph, or if that
    names another file.
    """
    check_self_contained(path)
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

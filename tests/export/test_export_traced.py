"""The graph of one model serves all others of its architecture, whatever their weights."""

from __future__ import annotations

import pytest
import torch

from compressbench.core.edits import set_mask_
from compressbench.core.errors import CheckFailedError
from compressbench.export.onnx import export_onnx
from compressbench.export.traced import read_graph, traced_edits, write_graph
from compressbench.export.translate import to_graph
from tests.export.export_zoo import MODELS, Mobile, Residual, make, quantize

pytestmark = pytest.mark.xdist_group("export_zoo")


def other_weights(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def through_a_file(path, giver):
    """A way to find the graph: that of `giver`, written and read again with other tensors."""

    def trace(model, example, opset):
        write_graph(to_graph(giver, example, opset), giver, path)
        return read_graph(path, model)

    return trace


@pytest.mark.parametrize("kind", MODELS)
def test_the_file_has_the_same_bytes_as_one_traced_anew(kind, data, tmp_path):
    example = data.prepare(data.split("train").inputs)
    giver = quantize(make(kind), 8, "channel", example)
    taker = other_weights(make(kind))
    for layer in taker.modules():
        if getattr(layer, "weight", torch.zeros(1)).ndim > 1:
            set_mask_(layer, torch.rand_like(layer.weight) > 0.3)
    taken = quantize(taker, 4, "channel", example)
    assert traced_edits(taken.edits) == traced_edits(giver.edits)
    export_onnx(taken, data, tmp_path / "anew.onnx")
    trace = through_a_file(tmp_path / "graph.onnx", giver.model)
    export_onnx(taken, data, tmp_path / "model.onnx", trace=trace)
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "anew.onnx").read_bytes()


def test_what_is_kept_has_no_weights(data, tmp_path):
    example = data.prepare(data.split("train").inputs)
    sizes = []
    for factor in (1.0, 3.0):
        model = make(Residual)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        write_graph(to_graph(model, example, 21), model, tmp_path / "graph.onnx")
        sizes.append((tmp_path / "graph.onnx").read_bytes())
    assert sizes[0] == sizes[1]


def test_a_graph_of_other_shapes_is_refused(data, tmp_path):
    example = data.prepare(data.split("train").inputs)
    trace = through_a_file(tmp_path / "graph.onnx", make(Residual))
    with pytest.raises(CheckFailedError, match="does not belong"):
        trace(make(Mobile), example, 21)

"""The exported file as bytes: what is in it, what is not, and that it is always the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressbench.export.onnx import export_onnx
from tests.export.export_zoo import (
    Concat,
    Mobile,
    Perceptron,
    Residual,
    calibrate_,
    make,
    quantize,
    run,
)

pytestmark = pytest.mark.xdist_group("export_zoo")  # they share exports


def _operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_one_file_that_explains_itself(export, data):
    _, path, report = export(Residual, 8, static=True)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]  # and no model.onnx.data
    notes = {p.key: p.value for p in model.metadata_props}
    assert json.loads(notes["classes"]) == list(data.spec.class_names)
    assert json.loads(notes["mean"]) == list(data.spec.mean)
    assert notes["min_opset"] == str(model.opset_import[0].version) == "20"
    assert json.loads(json.dumps(report)) == report


def test_nothing_is_in_the_file_that_nobody_reads(export):
    _, path, _ = export(Mobile, 8, static=True)
    graph = onnx.load(path).graph
    assert not graph.value_info
    assert [v.name for v in (*graph.input, *graph.output)] == ["input", "logits"]
    for node in graph.node:
        assert not (node.metadata_props or node.doc_string or node.name)
        assert all(len(name) <= 2 for name in (*node.input, *node.output) if name not in
                   {"input", "logits"})  # fmt: skip
    contents = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializer]
    assert len(contents) == len(set(contents))
    read = {name for node in graph.node for name in node.input}
    assert read >= {t.name for t in graph.initializer}


def test_batchnorm_is_folded_where_it_follows_a_layer_of_its_own(export):
    for kind, left in ((Residual, 0), (Mobile, 0), (Perceptron, 0), (Concat, 1)):
        _, path, _ = export(kind, 8, static=True)
        assert _operators(path).count("BatchNormalization") == left


def test_clamps_that_the_grid_repeats_are_gone(export):
    for kind in (Residual, Mobile):
        _, path, _ = export(kind, 8, static=True)
        assert not {"Relu", "Clip"} & set(_operators(path))
        _, path, _ = export(kind)
        assert {"Relu", "Clip"} & set(_operators(path))


def test_storage_follows_the_bits(export):
    stored = {2: "int2", 3: "int4", 5: "int8", 32: "float32"}
    sizes = {}
    for bits, storage in stored.items():
        _, path, report = export(Perceptron, bits)
        assert {row["storage"] for row in report["layers"]} == {storage}
        assert {row["bits"] for row in report["layers"]} == {bits}
        assert report["opset"] == {2: 25, 3: 21}.get(bits, 20)
        sizes[bits] = path.stat().st_size
    weights = 3 * 144 * 16
    assert sizes[5] - sizes[3] >= weights / 2 > sizes[3] - sizes[2] >= weights / 4 - 40


def test_the_same_artifact_gives_the_same_bytes_also_in_another_process(export, data, tmp_path):
    artifact, path, _ = export(Mobile, 8, static=True)
    first = path.read_bytes()
    again = tmp_path / "again.onnx"
    export_onnx(artifact, data, again)
    assert again.read_bytes() == first
    code = (
        "import sys, torch; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "torch.set_num_threads(1);"
        "from tests.export.export_zoo import *; from compressbench.export.onnx import export_onnx;"
        "d = ArrayData(); e = d.prepare(d.split('train').inputs);"
        "export_onnx(quantize(make(Mobile), 8, 'channel', e), d, Path(sys.argv[2]))"
    )
    other = tmp_path / "other.onnx"
    folder = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, folder, str(other)], check=True)
    assert other.read_bytes() == first


def test_the_model_is_left_as_it_was(export):
    artifact, _, _ = export(Residual, 8, static=True)
    again = quantize(make(Residual), 8, "channel", None).model.state_dict()
    for name, tensor in again.items():
        assert torch.equal(artifact.model.state_dict()[name], tensor), name


class LoudBias(nn.Module):
    """One channel's bias is far over what its tiny weights can express as int32 units."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_a_bias_that_overflows_int32_widens_its_channel(data, tmp_path):
    model = make(LoudBias)
    with torch.no_grad():
        model.conv.weight[1] *= 1e-9
        model.conv.weight[2] = 0
        model.conv.bias.copy_(torch.tensor([0.1, 2.0, 0.7, -0.1]))
    inputs = data.prepare(data.split("train").inputs)
    artifact = quantize(model, 8, "channel", None)
    edit = calibrate_(artifact.model, inputs)
    static = replace(artifact, edits=(*artifact.edits, edit))
    path = tmp_path / "loud.onnx"
    report = export_onnx(static, data, path)
    assert report["bias"] == {"int32": 2, "float32": 0, "widened": {"conv": 1}}
    with torch.no_grad():
        expected = static.model(inputs).numpy()
    assert np.abs(run(path, inputs) - expected).max() < 0.02 * np.ptp(expected)


class Tied(nn.Module):
    """Two layers that own one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(144, 144)
        self.second = nn.Linear(144, 144)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(144, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.second(torch.relu(self.first(x.mean(1).flatten(1))))))


def test_a_tied_weight_is_stored_once_and_activations_may_have_fewer_bits(data, tmp_path):
    inputs = data.prepare(data.split("train").inputs)
    artifact = quantize(make(Tied), 8, "tensor", None)
    layers = dict(artifact.model.named_modules())
    layers["second"].weight = layers["first"].weight  # quantized twice: the same integers
    edit = calibrate_(artifact.model, inputs, bits=5)
    static = replace(artifact, edits=(*artifact.edits, edit))
    path = tmp_path / "tied.onnx"
    export_onnx(static, data, path)
    shapes = [tuple(t.dims) for t in onnx.load(path).graph.initializer]
    assert shapes.count((144, 144)) == 1
    with torch.no_grad():
        expected = static.model(inputs).numpy()
    assert np.abs(run(path, inputs) - expected).max() < 0.05 * np.ptp(expected)

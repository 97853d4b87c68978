"""The codebook stage: shared weights in the model, codes and values in the file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compressbench.config.instantiate import instantiate
from compressbench.core import artifact as artifacts
from compressbench.core import edits
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import TRAINED, Artifact, Context, Runtime
from compressbench.data.digits import Digits
from compressbench.export.onnx import export_onnx
from compressbench.measure.size import theoretical_bits
from compressbench.models.small_cnn import SmallCnn
from compressbench.pruning.prune import Prune
from compressbench.quantization.codebook import Codebook


@pytest.fixture(scope="module")
def data():
    return Digits()


def start() -> Artifact:
    torch.manual_seed(3)
    config = {"_target_": "compressbench.models.small_cnn.SmallCnn", "input_shape": [1, 8, 8],
              "num_classes": 10, "width": 8}  # fmt: skip
    model = SmallCnn([1, 8, 8], 10, width=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # signs and sizes that folding has to carry
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return Artifact(model.eval(), config, (), frozenset({TRAINED}))


def context(data, folder) -> Context:
    return Context(data, Runtime(), 0, folder, instantiate)


def run_file(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": inputs.numpy()})[0]


@pytest.mark.parametrize(
    ("bits", "stored"), [(2, "UINT2"), (3, "UINT4"), (4, "UINT4"), (6, "UINT8")]
)
def test_the_file_looks_values_up_and_computes_what_the_model_does(bits, stored, data, tmp_path):
    made = Codebook(bits, rules=[]).run({"model": start()}, context(data, tmp_path)).artifact
    artifacts.check(made)
    path = tmp_path / "model.onnx"
    report = export_onnx(made, data, path)
    graph = onnx.load(path).graph
    gathers = [node for node in graph.node if node.op_type == "Gather"]
    codes = [t for t in graph.initializer if onnx.TensorProto.DataType.Name(t.data_type) == stored]
    assert len(gathers) == len(codes) == len(made.edits[-1]["layers"])
    assert all(numpy_helper.to_array(t).astype(int).max() < 1 << bits for t in codes)
    inputs = data.prepare(data.split("validation").inputs[:64])
    with torch.no_grad():
        expected = made.model(inputs).numpy()
    assert np.abs(run_file(path, inputs) - expected).max() < 1e-4 * np.ptp(expected)
    assert {row["granularity"] for row in report["layers"]} == {f"codebook of {1 << bits}"}
    floats = sum(numpy_helper.to_array(t).size for t in graph.initializer
                 if t.data_type == onnx.TensorProto.FLOAT)  # fmt: skip
    weights = sum(m.weight.numel() for m in made.model.modules() if hasattr(m, "weight_codebook"))
    others = sum(numpy_helper.to_array(t).nbytes for t in graph.initializer
                 if t.data_type == onnx.TensorProto.INT64)  # fmt: skip
    assert theoretical_bits(made, path) == weights * bits + 32 * floats + 8 * others


def test_it_is_stored_and_comes_back(data, tmp_path):
    made = Codebook(3).run({"model": start()}, context(data, tmp_path)).artifact
    artifacts.save(made, tmp_path)
    back = artifacts.load(tmp_path, lambda config: instantiate(config, "model"), "")
    assert artifacts.digest(back) == artifacts.digest(made)
    assert edits.weight_bits(back.edits)["classifier"] == 8  # below 4 bits, first and last


def test_pruned_weights_stay_zero(data, tmp_path):
    from compressbench.pruning.criteria.magnitude import Magnitude

    pruned = Prune(Magnitude(), 0.6).run({"model": start()}, context(data, tmp_path)).artifact
    made = Codebook(2).run({"model": pruned}, context(data, tmp_path)).artifact
    artifacts.check(made)
    for name, layer in edits.masked_layers(made.model).items():
        assert not layer.weight[~layer.weight_mask].any(), name


def test_a_weight_outside_the_codebook_is_noticed(data, tmp_path):
    made = Codebook().run({"model": start()}, context(data, tmp_path)).artifact
    made.model.classifier.weight.data[0, 0] += 1e-3
    with pytest.raises(CheckFailedError, match="classifier: weights left their codebook of 16"):
        artifacts.check(made)


def test_tied_weights_share_one_codebook(data, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
            self.two.weight = self.one.weight
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc(self.two(self.one(x.flatten(1)).relu()).relu())

    torch.manual_seed(0)
    begin = Artifact(Tied().eval(), {}, (), frozenset({TRAINED}))
    made = Codebook(rules=[]).run({"model": begin}, context(data, tmp_path)).artifact
    artifacts.check(made)
    assert len(made.model.one.weight.unique()) <= 16
    assert made.model.one.weight is made.model.two.weight
    with pytest.raises(UserError, match="two: 3 bits, but another layer"):
        Codebook(rules=[], widths={"two": 3}).run({"model": begin}, context(data, tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits must be an integer in .2, 8., got 1"),
        ({"bits": 4.5}, "bits must be an integer in .2, 8., got 4.5"),
        ({"rules": [{"layers": "fc", "granularity": "tensor"}]}, "granularity does not apply"),
        ({"batchnorm_images": 1}, "batchnorm_images must be an integer"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Codebook(**options)


def test_a_rule_that_matches_nothing_is_refused_before_training(data):
    with pytest.raises(UserError, match="matches no layer"):
        Codebook(rules=[{"layers": "nothing", "bits": 3}]).check_model(start().model, data.spec)


def test_pruning_afterwards_is_refused_before_training(data):
    from compressbench.pruning.criteria.magnitude import Magnitude

    with pytest.raises(UserError, match="prune before it"):
        Prune(Magnitude(), 0.5).check_line([Codebook()])
    assert replace(Codebook(), bits=3).bits == 3

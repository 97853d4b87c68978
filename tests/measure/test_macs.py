"""Multiply-accumulates against hand counts."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressbench.core.types import Artifact, DataSpec, Split
from compressbench.export.onnx import export_onnx
from compressbench.measure.macs import macs
from compressbench.models.mobilenet_v2 import MobileNetV2
from compressbench.models.resnet import ResNet
from compressbench.pruning.channels import limits


class Pictures:
    spec = DataSpec("pictures", (3, 32, 32), tuple("abcdefghij"), (0.5,) * 3, (0.5,) * 3)

    def split(self, name):
        return Split(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4).long())

    def prepare(self, inputs):
        return inputs.float()


def test_resnet20(tmp_path):
    artifact = Artifact(ResNet((3, 32, 32), 10).eval(), {}, (), frozenset())
    export_onnx(artifact, Pictures(), tmp_path / "resnet.onnx")
    assert macs(tmp_path / "resnet.onnx") == 40_813_184


@pytest.mark.parametrize("kind", [ResNet, MobileNetV2])
def test_the_file_has_those_of_the_live_model(kind, tmp_path):
    """Which torch counts, and by which a limit on a model that is pruned is kept."""
    model = kind((3, 32, 32), 10).eval()
    export_onnx(Artifact(model, {}, (), frozenset()), Pictures(), tmp_path / "model.onnx")
    assert macs(tmp_path / "model.onnx") == limits.macs(model, torch.zeros(1, 3, 32, 32))


def _save(path, nodes, weights, shape):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(torch.zeros(s).numpy(), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_grouped_strided_transposed_and_matmul(tmp_path):
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], group=2, strides=[2, 2], pads=[1] * 4),
        helper.make_node("ConvTranspose", ["a", "t"], ["b"], strides=[2, 2]),
        helper.make_node("MatMul", ["b", "m"], ["logits"]),
    ]
    weights = {"w": (6, 2, 3, 3), "t": (6, 5, 2, 2), "m": (8, 7)}
    path = _save(tmp_path / "m.onnx", nodes, weights, (4, 8, 8))
    conv = (6 * 4 * 4) * (2 * 9)
    with torch.no_grad():
        up = nn.ConvTranspose2d(6, 5, 2, stride=2)(torch.zeros(1, 6, 4, 4))
    transposed = (6 * 4 * 4) * (5 * 4)
    assert macs(path) == conv + transposed + up.numel() * 7
